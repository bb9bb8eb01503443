"""A table that grows row by row and is on disk after each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae_bench.files import check_writable, write_table


class Table:
    """A CSV file of measurements. A row's `id` names what was measured: rows that are there are not
    measured again, and a failed one (with an `error`) is replaced.

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

    def add(self, row: Mapping[str, Any]) -> None:
        """Puts a row into the file, in place of one with the same id."""
        self._rows = [other for other in self._rows if other["id"] != row["id"]] + [dict(row)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_table(self.path, pd.DataFrame(self._rows))

    def frame(self, keys: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows that were measured, or those with these ids."""
        rows = [row for row in self._rows if not _failed(row)]
        chosen = rows if keys is None else [row for row in rows if row["id"] in set(keys)]
        return pd.DataFrame(chosen)


def _failed(row: Mapping[str, Any]) -> bool:
    error = row.get("error")
    return isinstance(error, str) and bool(error)
