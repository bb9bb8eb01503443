"""The folder of a run: what was asked for, what each arm gave, and the tables.

    grid.json            the specification: arms, caches, evaluation sets
    arms/<key>/          sae/ (folded), training.parquet, evaluation.parquet, arm.json
    table.parquet, .csv  one row an arm and evaluation set
    frequencies.parquet  firing rate of every latent, same rows

Every file is written under another name first and renamed, and arm.json last: an arm without it is
trained again, an arm with it never.
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sae_bench.arm import Arm
from sae_bench.components import digest
from sae_bench.errors import InputError
from sae_bench.files import read_json, write_json, write_table
from sae_bench.loading import load_sae
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trained

VERSION = 1
TRAINED, FAILED, SKIPPED = "trained", "failed", "skipped"


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

    @classmethod
    def start(cls, path: str | Path, arms: Sequence[Arm], inputs: Mapping[str, Any]) -> "RunFolder":
        """Makes the folder, or finds the one that an earlier run of the same grid left: its
        finished arms are kept, further arms may be added.

        Raises:
            InputError: the folder cannot be written, or holds another grid.
        """
        path = Path(path)
        wanted = {arm.key: arm.record() for arm in arms}
        specification = path / "grid.json"
        if specification.exists():
            found = read_json(specification)
            if found.get("version") != VERSION or digest(found["inputs"]) != digest(inputs):
                what = "another grid (its data or evaluation sets differ)"
            elif others := set(found["arms"]) - set(wanted):
                what = f"another grid ({len(others)} of its arms are not in this one)"
            else:
                what = ""
            if what:
                raise InputError(f"{path}: holds {what}; choose another folder or remove it")
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: exists and is not a run folder; choose another one")
        try:
            (path / "arms").mkdir(parents=True, exist_ok=True)
            write_json(
                specification,
                {
                    "version": VERSION,
                    "inputs": inputs,
                    "arms": wanted,
                    "environment": environment(),
                },
            )
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        return cls(path)

    def _of(self, arm: Arm) -> Path:
        return self.path / "arms" / arm.key

    def outcome(self, arm: Arm) -> dict[str, Any] | None:
        """Status and reason of an arm that ended, or None."""
        path = self._of(arm) / "arm.json"
        return read_json(path) if path.exists() else None

    def is_trained(self, arm: Arm) -> bool:
        """Whether the arm need not be trained again."""
        outcome = self.outcome(arm)
        return outcome is not None and outcome["status"] == TRAINED

    def keep(self, trained: Trained, scale: float) -> None:
        """Stores an arm that ended. Its SAE is folded by the activation scale (in place)."""
        arm, folder = trained.arm, self._of(trained.arm)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.parquet").unlink(missing_ok=True)
        write_table(folder / "training.parquet", pd.DataFrame(trained.history))
        if trained.reason is None:
            provenance = {"arm": arm.record(), "activation_scale": scale}
            trained.sae.fold_(scale).save(folder / "sae", provenance)
        status = TRAINED if trained.reason is None else FAILED
        outcome = {"status": status, "reason": trained.reason or "", "seconds": trained.seconds}
        write_json(folder / "arm.json", {**outcome, **arm.record()})

    def sae(self, arm: Arm, device: torch.device | str = "cpu") -> SparseAutoencoder:
        """The trained SAE of an arm; it takes raw activations."""
        return load_sae(self._of(arm) / "sae", device)

    def is_evaluated(self, arm: Arm) -> bool:
        """Whether the arm's metrics are stored."""
        return (self._of(arm) / "evaluation.parquet").exists()

    def keep_evaluation(self, arm: Arm, rows: pd.DataFrame) -> None:
        """Stores the metrics of an arm, one row an evaluation set."""
        write_table(self._of(arm) / "evaluation.parquet", rows)

    def finish(self, arms: Sequence[Arm], common: Mapping[str, Any]) -> pd.DataFrame:
        """Gathers all arms into the final table, writes it, and returns it.

        Skipped and failed arms have one row each, with their reason and no metrics.
        """
        rows: list[dict[str, Any]] = []
        for arm in arms:
            outcome = self.outcome(arm) or {"status": SKIPPED, "reason": arm.objection or ""}
            ended = {name: outcome.get(name) for name in ("status", "reason", "seconds")}
            base = {**arm.columns(), **common, **ended}
            evaluation = self._of(arm) / "evaluation.parquet"
            metrics: list[dict[str, Any]] = [{}]
            if ended["status"] == TRAINED and evaluation.exists():
                metrics = pd.read_parquet(evaluation).to_dict("records")
            rows.extend({**base, **row} for row in metrics)
        table = pd.DataFrame(rows)
        if "frequency" in table:
            kept = table.dropna(subset="frequency")
            write_table(self.path / "frequencies.parquet", kept[["arm", "eval_set", "frequency"]])
            table = table.drop(columns="frequency")
        write_table(self.path / "table.parquet", table)
        write_table(self.path / "table.csv", table)
        return table
