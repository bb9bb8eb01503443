"""The tables of a run, and those of them that are committed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from sae_bench.errors import InputError
from sae_bench.files import write_table
from sae_bench.store import MEASURED

FURTHER = "further"
"""Subfolder of a run, or of a part of it, with the tables of what else was measured."""


@dataclass(frozen=True)
class Results:
    """What figures and answers are made from: the tables of a run.

    Where a run has parts, tables begin with the column `part`, and keys of arms with the part's
    name and a slash.

    Args:
        table: one row an arm and evaluation set.
        frequencies: columns arm, eval_set and frequency, an array of firing rates.
        further: what an ablation measures besides, by name.
    """

    table: pd.DataFrame
    frequencies: pd.DataFrame
    further: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Reads the tables of a run, or of those of its parts that are finished.

        Raises:
            InputError: the folder holds no finished run.
        """
        folder = Path(folder)
        parts = sorted(path.parent for path in folder.glob("*/table.parquet"))
        if not parts:
            return cls._part(folder)
        return _joined([cls._part(part).named(part.name) for part in parts])

    @classmethod
    def published(cls, name: str, root: Path) -> "Results":
        """Reads what `publish` wrote under the same name.

        Raises:
            InputError: nothing was published under that name.
        """
        table, frequencies, further = _places(name, root)
        return cls._read(table, frequencies, further)

    def publish(self, name: str, root: Path) -> None:
        """Writes the tables that are committed: `root`/tables/NAME.csv and, beside it, the firing
        rates of all latents and what else was measured. What was published of parts that are not
        among these stays."""
        table, frequencies, _ = _places(name, root)
        whole = self._beside(Results.published(name, root)) if table.exists() else self
        table.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, whole.table)
        write_table(frequencies, whole.frequencies)
        for key, rows in whole.further.items():
            if len(rows.columns):  # nothing is measured of some parts
                write_table(table.with_name(f"{name}_{key}.csv"), rows)

    def named(self, part: str) -> "Results":
        """The same as a part of that name."""

        def marked(table: pd.DataFrame) -> pd.DataFrame:
            known = table.assign(arm=part + "/" + table["arm"]) if "arm" in table else table.copy()
            known.insert(0, "part", part)
            return known

        further = {key: marked(rows) for key, rows in self.further.items()}
        return Results(marked(self.table), marked(self.frequencies), further)

    def _beside(self, before: "Results") -> "Results":
        if "part" not in self.table or "part" not in before.table:
            return self
        mine = set(self.table["part"])
        others = sorted(set(before.table["part"]) - mine)
        kept = {part: before._of(part) for part in others} | {part: self._of(part) for part in mine}
        return _joined([kept[part] for part in sorted(kept)])

    def _of(self, part: str) -> "Results":
        def mine(table: pd.DataFrame) -> pd.DataFrame:
            return table[table["part"] == part] if len(table) else table

        further = {key: mine(rows) for key, rows in self.further.items()}
        return Results(mine(self.table), mine(self.frequencies), further)

    @classmethod
    def _part(cls, folder: Path) -> "Results":
        further = {path.stem: path for path in sorted((folder / FURTHER).glob("*.parquet"))}
        return cls._read(folder / "table.parquet", folder / "frequencies.parquet", further)

    @classmethod
    def _read(cls, table: Path, frequencies: Path, further: Mapping[str, Path]) -> "Results":
        try:
            others = {key: _table(path) for key, path in further.items()}
            found = cls(_table(table), pd.read_parquet(frequencies), others)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{table.parent}: no tables of a finished run ({reason})") from None
        for path, columns, needed in (
            (table, found.table, ("arm", "series", "setting", "status", *MEASURED)),
            (frequencies, found.frequencies, ("arm", "eval_set", "frequency")),
        ):
            if absent := [name for name in needed if name not in columns]:
                raise InputError(f"{path}: no table of a finished run (no column {absent[0]!r})")
        return found


def _table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, dtype=dict.fromkeys(("part", "eval_set"), str))  # names like 64


def _joined(parts: Sequence[Results]) -> Results:
    def together(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
        found = [table for table in tables if len(table)]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    keys = sorted({key for part in parts for key in part.further})
    return Results(
        together(part.table for part in parts),
        together(part.frequencies for part in parts),
        {key: together(p.further[key] for p in parts if key in p.further) for key in keys},
    )


def _places(name: str, root: Path) -> tuple[Path, Path, dict[str, Path]]:
    tables = root / "tables"
    further = {
        path.stem.removeprefix(f"{name}_"): path for path in sorted(tables.glob(f"{name}_*.csv"))
    }
    return tables / f"{name}.csv", tables / f"{name}_frequencies.parquet", further


def published_tables(name: str, results: Results) -> list[str]:
    """Names of the tables of what was published under `name`."""
    return [name, *(f"{name}_{key}" for key in results.further)]


def is_published(name: str, root: Path) -> bool:
    """Whether `publish` wrote tables under that name."""
    return _places(name, root)[0].exists()
