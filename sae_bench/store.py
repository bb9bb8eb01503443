"""The folder of a run: what was asked for, what each arm gave, and the tables.

    grid.json            the specification: arms, caches, evaluation sets
    arms/<key>/          sae/ (folded), training.parquet, evaluation.parquet, arm.json
    checkpoints/         the arms under way (see `checkpoints`); gone when all have ended
    table.parquet, .csv  one row an arm and evaluation set
    frequencies.parquet  firing rate of every latent, same rows

Every file is written under another name first and renamed, and arm.json last: an arm without it is
trained again, from its newest checkpoint if it has one, and so is one that failed, from the start;
a trained one never.
"""

import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from sae_bench.arm import Arm, check_names
from sae_bench.checkpoints import Checkpoints
from sae_bench.components import digest, to_plain
from sae_bench.errors import InputError
from sae_bench.files import read_json, write_json, write_table
from sae_bench.loading import load_sae
from sae_bench.released import Released
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trained

VERSION = 1
TRAINED, FAILED, SKIPPED, MISSING = "trained", "failed", "skipped", "missing"
RELEASED = "released"
DONE = (TRAINED, RELEASED)
"""Status of arms that have an SAE."""
ENDED = ("status", "reason", "activation_scale", "seconds")
MEASURED = (
    "eval_set",
    "tokens",
    "l0",
    "fvu",
    "delta_lm_loss",
    "loss_recovered",
    "gamma",
    "dead",
    "above_1pct",
    "above_10pct",
    "l0_share_above_10pct",
)
"""Columns that every table has, empty where nothing was measured."""


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process."""
    packages = ("sae-ablations", "torch", "transformers", "numpy")
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **{name: version(name) for name in packages},
    }


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def _specification(self) -> Path:
        return self.path / "grid.json"

    def _held(self) -> dict[str, Any]:
        """What grid.json says."""
        found = read_json(self._specification)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise InputError(f"{self._specification}: of another version; choose another folder")
        if not all(isinstance(found.get(key), dict) for key in ("inputs", "arms")):
            raise InputError(f"{self._specification}: is damaged; choose another folder")
        return found

    def check(self, arms: Sequence[Arm | Released], inputs: Mapping[str, Any]) -> None:
        """Whether this grid can go here; writes nothing. An empty folder can take it, and so can
        the folder of earlier runs on the same inputs, whichever arms they had. A warning names arms
        that were there before with other code.

        Args:
            arms: the whole grid.
            inputs: what is known of its data by name, JSON-ready; None for what is not known.

        Raises:
            InputError: the folder cannot be written, or holds something else; classes that SAEs
                could not be loaded with.
        """
        check_names(arm for arm in arms if isinstance(arm, Arm))
        if self._specification.exists():
            found = self._held()
            if reason := _difference(found["inputs"], inputs):
                raise InputError(
                    f"{self.path}: holds another grid ({reason}); choose another folder"
                )
            for arm, older in _edited(found["arms"], arms):
                warnings.warn(
                    f"{arm}: the code of its classes has changed since {older} was trained, which "
                    f"stays in {self.path}; the new code is trained as another arm",
                    stacklevel=2,
                )
        elif self.path.is_file() or (self.path.is_dir() and any(_entries(self.path))):
            raise InputError(f"{self.path}: exists and is not a run folder; choose another one")
        ancestor = next(place for place in (self.path, *self.path.parents) if place.exists())
        try:
            with tempfile.TemporaryFile(dir=ancestor):
                pass
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another folder"
            ) from None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps other processes out of the folder, which is made.

        Raises:
            InputError: another process is at work in it, or it cannot be made.
        """
        lock = FileLock(self.path / "run.lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.path}: another process is at work in this folder") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            lock.release()

    def start(self, arms: Sequence[Arm | Released], inputs: Mapping[str, Any]) -> None:
        """Makes the folder, once `check` has passed, and writes down what will be in it, beside
        what is there from earlier runs.

        Raises:
            InputError: the folder cannot be written.
        """
        held = self._held()["arms"] if self._specification.exists() else {}
        specification = {
            "version": VERSION,
            "inputs": inputs,
            "arms": held | {arm.key: arm.record() for arm in arms},
            "environment": environment(),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._specification, specification)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _of(self, arm: Arm | Released) -> Path:
        return self.path / "arms" / arm.key

    def outcome(self, arm: Arm | Released) -> dict[str, Any] | None:
        """Status and reason of an arm that ended, or None."""
        path = self._of(arm) / "arm.json"
        return read_json(path) if path.exists() else None

    def is_trained(self, arm: Arm | Released) -> bool:
        """Whether the arm's SAE is there."""
        outcome = self.outcome(arm)
        return outcome is not None and outcome["status"] in DONE

    def keep(self, trained: Trained, scale: float, place: Mapping[str, Any]) -> None:
        """Stores an arm that ended.

        Args:
            trained: its SAE is folded by the activation scale, in place.
            scale: the activation scale.
            place: what the SAE's provenance says of model, site, context and text.
        """
        arm, folder = trained.arm, self._of(trained.arm)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.parquet").unlink(missing_ok=True)
        write_table(folder / "training.parquet", pd.DataFrame(trained.history))
        if trained.sae is not None and trained.reason is None:
            sae = trained.sae.fold_(scale)
            sae.provenance = {"arm": arm.record(), "activation_scale": scale, **place}
            sae.save(folder / "sae")
        status = TRAINED if trained.reason is None else FAILED
        outcome = {
            "status": status,
            "reason": trained.reason or "",
            "activation_scale": scale,
            "seconds": trained.seconds,
        }
        write_json(folder / "arm.json", {**outcome, **arm.record()})

    def adopt(self, released: Released) -> None:
        """Stores an arm that was finished elsewhere, as it is."""
        folder = self._of(released)
        folder.mkdir(parents=True, exist_ok=True)
        released.sae.save(folder / "sae")
        write_json(folder / "arm.json", {"status": RELEASED, "reason": "", **released.record()})

    def checkpoints(self, data: Mapping[str, Any], every: float) -> Checkpoints:
        """Where arms under way are kept.

        Args:
            data: record of the training source.
            every: seconds between two checkpoints.
        """
        return Checkpoints(self.path / "checkpoints", data, every=every)

    def sae(self, arm: Arm | Released, device: torch.device | str = "cpu") -> SparseAutoencoder:
        """The trained SAE of an arm; it takes raw activations."""
        return load_sae(self._of(arm) / "sae", device)

    def is_evaluated(self, arm: Arm | Released) -> bool:
        """Whether the arm's metrics are stored."""
        return (self._of(arm) / "evaluation.parquet").exists()

    def keep_evaluation(self, arm: Arm | Released, rows: pd.DataFrame) -> None:
        """Stores the metrics of an arm, one row an evaluation set."""
        write_table(self._of(arm) / "evaluation.parquet", rows)

    def finish(self, arms: Sequence[Arm | Released], common: Mapping[str, Any]) -> pd.DataFrame:
        """Gathers all arms into the final table, writes it, and returns it.

        Skipped and failed arms have one row each, with their reason and no metrics. The columns
        of `MEASURED` are always there.
        """
        rows: list[dict[str, Any]] = []
        for arm in arms:
            outcome = self.outcome(arm) or {
                "status": SKIPPED if arm.objection else MISSING,
                "reason": arm.objection or "not trained yet",
            }
            ended = {name: outcome.get(name) for name in ENDED}
            base = {**arm.columns(), **common, **ended}
            evaluation = self._of(arm) / "evaluation.parquet"
            metrics: list[dict[str, Any]] = [{}]
            if ended["status"] in DONE and evaluation.exists():
                metrics = pd.read_parquet(evaluation).to_dict("records")
            rows.extend({**base, **row} for row in metrics)
        table = pd.DataFrame(rows)
        table = table.reindex(columns=list(dict.fromkeys([*table, *MEASURED, "frequency"])))
        kept = table[table["frequency"].notna()]
        write_table(self.path / "frequencies.parquet", kept[["arm", "eval_set", "frequency"]])
        table = table.drop(columns="frequency")
        write_table(self.path / "table.parquet", table)
        write_table(self.path / "table.csv", table)
        return table


def metrics_beside(sae: Path) -> pd.DataFrame | None:
    """The stored metrics of the arm whose SAE lies in the folder `sae`, one row an evaluation set;
    None if it is no arm's, or was not evaluated."""
    evaluation = sae.absolute().parent / "evaluation.parquet"
    belongs = sae.absolute().name == "sae" and evaluation.exists()
    return pd.read_parquet(evaluation) if belongs else None


def _entries(folder: Path) -> Iterator[Path]:
    """What a folder holds, except files that a killed process left half-written."""
    return (entry for entry in folder.iterdir() if entry.suffix not in (".partial", ".lock"))


def _difference(held: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """Which of the inputs that are known on both sides differs, or None."""
    for name, value in asked.items():
        known = held.get(name)
        if value is not None and known is not None and digest(value) != digest(known):
            return f"{name!r} differs: {_first_difference(known, to_plain(value), name)}"
    return None


def _first_difference(held: Any, asked: Any, path: str) -> str:
    """`path: one there, another here` of the first value that differs."""
    if isinstance(held, dict) and isinstance(asked, dict):
        for key in [*held, *(key for key in asked if key not in held)]:
            if digest(held.get(key)) != digest(asked.get(key)):
                return _first_difference(held.get(key), asked.get(key), f"{path}.{key}")
    return f"{path} is {held!r:.60} there and {asked!r:.60} here"


def _edited(held: Mapping[str, Any], arms: Sequence[Arm | Released]) -> Iterator[tuple[str, str]]:
    """Keys of arms that `held` has with other code only: the new one, and the one there."""
    there = {_without_code(record): key for key, record in held.items()}
    for arm in arms:
        if arm.key not in held and (older := there.get(_without_code(arm.record()))):
            yield arm.key, older


def _without_code(record: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in record.items() if name != "source"})
