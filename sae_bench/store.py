"""The folder of a run: what was asked for, what each arm gave, and the tables.

    grid.json            the specification (and grid.copy.json): arms, caches, evaluation sets
    arms/<key>/          sae/ (folded), training.parquet, evaluation.parquet, arm.json
    checkpoints/         the arms under way (see `checkpoints`); gone when all have ended
    table.parquet, .csv  one row an arm and evaluation set
    frequencies.parquet  firing rate of every latent, same rows

Every file is written under another name first and renamed, and arm.json last, with the checksums
of the others: an arm without it is trained again, from its newest checkpoint if it has one, and so
is one that failed or whose files are damaged, from the start; a trained one never.
"""

import fcntl
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from sae_bench.arm import Arm
from sae_bench.checkpoints import Checkpoints, newest_step
from sae_bench.errors import DamagedFileError, InputError
from sae_bench.files import checksum, read_record, write_record, write_table
from sae_bench.loading import load_sae
from sae_bench.released import Released
from sae_bench.sae import SparseAutoencoder
from sae_bench.specification import Specification
from sae_bench.train import Trained

TRAINED, FAILED, SKIPPED, MISSING = "trained", "failed", "skipped", "missing"
RELEASED = "released"
DONE = (TRAINED, RELEASED)
"""Status of arms that have an SAE."""
ENDED = ("status", "reason", "activation_scale", "seconds")
ARM, EVALUATION = "arm.json", "evaluation.parquet"
"""Files of an arm: its record, with checksums of all the others, and its metrics."""
CHECKPOINTS = "checkpoints"
PATIENCE = 1.0
"""Seconds that a run waits for its folder: `is_in_use` has a share in the lock for an instant."""
WRITTEN = (".json", ".safetensors", ".parquet")
"""What an arm's files end with; what a killed process left half-written ends otherwise."""
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


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def specification(self) -> Specification:
        """What was asked for."""
        return Specification(self.path)

    @property
    def _lock(self) -> Path:
        return self.path / "run.lock"

    @property
    def is_in_use(self) -> bool:
        """Whether a process is at work in the folder, which need not be writable.

        Raises:
            InputError: the lock cannot be read.
        """
        try:
            with self._lock.open("rb") as file:  # closing it gives up what the next line takes
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            raise InputError(f"{self._lock}: cannot be read ({error.strerror})") from None
        return False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps other processes out of the folder, which is made.

        Raises:
            InputError: another process is at work in it, or it cannot be made.
        """
        lock = FileLock(self._lock)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise InputError(f"{self.path}: another process is at work in this folder") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            lock.release()

    def _of(self, arm: Arm | Released) -> Path:
        return self.path / "arms" / arm.key

    def recorded(self, key: str) -> dict[str, Any] | None:
        """The record of an arm that ended, by its key, or None.

        Raises:
            DamagedFileError: not as it was written.
        """
        path = self.path / "arms" / key / ARM
        return read_record(path, {"status": str, "files": dict}) if path.exists() else None

    def checkpointed(self, key: str) -> int | None:
        """The step of the newest checkpoint of an arm that has begun and not ended, by its key: 0
        before the first one; None if it has not begun."""
        return newest_step(self.path / CHECKPOINTS, key)

    def outcome(self, arm: Arm | Released) -> dict[str, Any] | None:
        """Status and reason of an arm that ended, or None; one warning if its record is damaged,
        which counts as none."""
        try:
            return self.recorded(arm.key)
        except DamagedFileError as error:
            warnings.warn(f"{error}; {arm.key} starts anew", stacklevel=3)
            return None

    def is_trained(self, arm: Arm | Released) -> bool:
        """Whether the arm's SAE is there, and as it was written."""
        outcome = self.outcome(arm)
        if outcome is None or outcome["status"] not in DONE:
            return False
        names = [name for name in outcome["files"] if name != EVALUATION]
        return not self._damage(arm, outcome, names)

    def _damage(
        self, arm: Arm | Released, outcome: Mapping[str, Any], names: Sequence[str]
    ) -> str | None:
        """What `damage` finds; one warning says it."""
        if found := self.damage(arm.key, outcome, names):
            warnings.warn(found, stacklevel=4)
        return found

    def damage(
        self, key: str, outcome: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> str | None:
        """The first file of an arm that is not there, or not as it was written, and what the next
        run does about it; None if there is none.

        Args:
            key: of the arm.
            outcome: its record.
            names: which of its files to read; None: all.
        """
        chosen = outcome["files"] if names is None else names
        for name in sorted(chosen, key=lambda name: name == EVALUATION):  # the least of damages
            path = self.path / "arms" / key / name
            if not (path.is_file() and checksum(path) == outcome["files"][name]):
                return f"{path}: missing or damaged; {_remedy(name, outcome)}"
        return None

    def keep(self, trained: Trained, scale: float, place: Mapping[str, Any]) -> None:
        """Stores an arm that ended.

        Args:
            trained: its SAE is folded by the activation scale, in place.
            scale: the activation scale.
            place: what the SAE's provenance says of model, site, context and text.
        """
        arm, folder = trained.arm, self._of(trained.arm)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EVALUATION).unlink(missing_ok=True)
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
            "path": trained.path,
        }
        self._close(arm, outcome)

    def adopt(self, released: Released) -> None:
        """Stores an arm that was finished elsewhere, as it is; one that is there already takes its
        present name and path."""
        folder = self._of(released)
        if self.is_trained(released):
            write_record(folder / ARM, {**(self.outcome(released) or {}), **released.record()})
            return
        folder.mkdir(parents=True, exist_ok=True)
        released.sae.save(folder / "sae")
        self._close(released, {"status": RELEASED, "reason": ""})

    def _close(self, arm: Arm | Released, outcome: Mapping[str, Any]) -> None:
        """Writes the arm's record, with the checksums of what lies in its folder: the last thing
        that is written of an arm."""
        folder = self._of(arm)
        written = (path for path in sorted(folder.rglob("*")) if path.suffix in WRITTEN)
        files = {path.relative_to(folder).as_posix(): checksum(path) for path in written}
        files.pop(ARM, None)
        write_record(folder / ARM, {**outcome, **arm.record(), "files": files})

    def checkpoints(self, data: Mapping[str, Any], every: float) -> Checkpoints:
        """Where arms under way are kept.

        Args:
            data: record of the training source.
            every: seconds between two checkpoints.
        """
        return Checkpoints(self.path / CHECKPOINTS, data, every=every)

    def sae(self, arm: Arm | Released, device: torch.device | str = "cpu") -> SparseAutoencoder:
        """The trained SAE of an arm; it takes raw activations."""
        return load_sae(self._of(arm) / "sae", device)

    def is_evaluated(self, arm: Arm | Released) -> bool:
        """Whether the arm's SAE and its metrics are stored, and as they were written."""
        outcome = self.outcome(arm)
        if outcome is None or EVALUATION not in outcome["files"]:
            return False
        return self.is_trained(arm) and not self._damage(arm, outcome, [EVALUATION])

    def keep_evaluation(self, arm: Arm | Released, rows: pd.DataFrame) -> None:
        """Stores the metrics of an arm, one row an evaluation set."""
        write_table(self._of(arm) / EVALUATION, rows)
        outcome = self.outcome(arm)
        assert outcome is not None
        self._close(arm, outcome)

    def finish(
        self,
        arms: Sequence[Arm | Released],
        common: Mapping[str, Any],
        unmeasurable: Mapping[str, str] = MappingProxyType({}),
    ) -> pd.DataFrame:
        """Gathers all arms into the final table, writes it, and returns it.

        Args:
            arms: in the order of the table.
            common: columns that all rows share.
            unmeasurable: why trained arms have no metrics, by key.

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
            ended["reason"] = unmeasurable.get(arm.key, ended["reason"])
            base = {**arm.columns(), **common, **ended}
            metrics: list[dict[str, Any]] = [{}]
            if ended["status"] in DONE and self.is_evaluated(arm):
                metrics = pd.read_parquet(self._of(arm) / EVALUATION).to_dict("records")
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
    evaluation = sae.absolute().parent / EVALUATION
    belongs = sae.absolute().name == "sae" and evaluation.exists()
    return pd.read_parquet(evaluation) if belongs else None


def _remedy(name: str, outcome: Mapping[str, Any]) -> str:
    """How a run makes a damaged file of an arm anew."""
    if name == EVALUATION:
        return "the arm is measured again"
    if outcome["status"] == RELEASED:
        return "the arm is stored again"
    return "the arm is trained again, for nothing less gives this file back"
