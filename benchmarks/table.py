"""A table that grows cell by cell and is on disk after each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sae_bench.components import digest
from sae_bench.environment import processor
from sae_bench.files import check_writable, checksum, write_table

ROOT = Path(__file__).parents[1]
MEASURED = ("sae_bench", "architectures", "benchmarks")


class Table:
    """A CSV file of measurements.

    A row's `id` names what was measured, with which code and on which machine: what is there is not
    measured again. Its `case` names what was measured alone: a new row takes the place of the old
    one. A failed row (with an `error`) counts as not there.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        check_writable(path.parent)
        self.path = path
        self._rows: list[dict[str, Any]] = []
        if path.exists():
            self._rows = pd.read_csv(path).to_dict("records")

    def has(self, key: str) -> bool:
        """Whether it has been measured."""
        return any(row["id"] == key and not _failed(row) for row in self._rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Puts rows into the file, all of them or, if killed, none."""
        new = {row["case"] for row in rows}
        self._rows = [row for row in self._rows if row["case"] not in new]
        self._rows += [dict(row) for row in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_table(self.path, pd.DataFrame(self._rows))

    def frame(self, keys: Sequence[str]) -> pd.DataFrame:
        """The rows with these ids that did not fail."""
        wanted = set(keys)
        return pd.DataFrame([row for row in self._rows if row["id"] in wanted and not _failed(row)])


def _failed(row: Mapping[str, Any]) -> bool:
    error = row.get("error")
    return isinstance(error, str) and bool(error)


def code() -> str:
    """Hash of the source files whose speed is measured."""
    files = sorted(path for name in MEASURED for path in (ROOT / name).rglob("*.py"))
    return digest({str(path.relative_to(ROOT)): checksum(path) for path in files})


def machine(device: torch.device) -> str:
    """The name of the processor or of the accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
