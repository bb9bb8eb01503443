"""What a run was asked for: `grid.json` in its folder; `grid.copy.json` stands in for it.

Both are written when a run starts, beside what earlier runs in the folder were asked for.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_bench.arm import Arm, check_names
from sae_bench.components import digest, to_plain
from sae_bench.errors import DamagedFileError, InputError
from sae_bench.files import check_name, check_writable, read_record, write_record
from sae_bench.released import Released

VERSION = 1
FIELDS = {"version": int, "inputs": dict, "arms": dict, "skipped": dict}
"""What every version has."""
NO_ARMS = "run: no arms were given, neither to train nor released"


@dataclass(frozen=True)
class Specification:
    """Of the runs in a folder.

    Args:
        folder: theirs.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "grid.json"

    @property
    def _copy(self) -> Path:
        return self.folder / "grid.copy.json"

    def check(self, arms: Sequence[Arm | Released], inputs: Mapping[str, Any]) -> None:
        """Whether this grid can go here; writes nothing. An empty folder can take it, and so can
        the folder of earlier runs on the same inputs, whichever arms they had. A warning names arms
        that were there before with other code.

        Args:
            arms: the whole grid.
            inputs: what is known of its data by name, JSON-ready; None for what is not known.

        Raises:
            InputError: no arms, the same arm twice; the folder cannot be written, or holds
                something else; classes that SAEs could not be loaded with.
        """
        check_name(self.folder)
        _check_twins(arms)
        check_names(arm for arm in arms if isinstance(arm, Arm))
        if found := self.read():
            if reason := _difference(found["inputs"], inputs):
                raise InputError(
                    f"{self.folder}: holds another grid ({reason}); choose another folder"
                )
            for arm, older in _edited(found["arms"], arms):
                warnings.warn(
                    f"{arm}: the code of its classes has changed since {older} was trained, which "
                    f"stays in {self.folder}; the new code is trained as another arm",
                    stacklevel=2,
                )
        elif self.folder.is_file() or (self.folder.is_dir() and any(_entries(self.folder))):
            raise InputError(f"{self.folder}: exists and is not a run folder; choose another one")
        check_writable(self.folder)

    def read(self) -> dict[str, Any] | None:
        """What it says, or its copy if it is damaged; None if there is none.

        Raises:
            DamagedFileError: both are damaged.
            InputError: another version of this library wrote it.
        """
        if not (self.path.exists() or self._copy.exists()):
            return None
        try:
            found = read_record(self.path, FIELDS)
        except InputError as error:
            if not self._copy.exists():
                raise DamagedFileError(f"{error}, or not a run's; choose another folder") from None
            found = read_record(self._copy, FIELDS)
        if found["version"] != VERSION:
            raise InputError(f"{self.path}: of another version; choose another folder")
        return found

    def write(
        self,
        arms: Sequence[Arm | Released],
        inputs: Mapping[str, Any],
        environment: Mapping[str, Any],
    ) -> None:
        """Makes the folder, once `check` has passed, and writes down what will be in it, beside
        what is there from earlier runs, and what it is made with.

        Raises:
            InputError: the folder cannot be written.
        """
        held = self.read() or {}
        content = {
            "version": VERSION,
            "inputs": inputs,
            "arms": held.get("arms", {}) | {arm.key: arm.record() for arm in arms},
            "skipped": held.get("skipped", {})
            | {arm.key: arm.objection for arm in arms if arm.objection},
            "environment": environment,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.path, self._copy):
                write_record(path, content)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror})") from None


def _check_twins(arms: Sequence[Arm | Released]) -> None:
    if not arms:
        raise InputError(NO_ARMS)
    seen: dict[str, Arm | Released] = {}
    for arm in arms:
        if (first := seen.get(arm.key)) is not None:
            both = f" ({arm.key})"
            if isinstance(arm, Released) and isinstance(first, Released):
                both = f": {first.name!r} ({first.path}) and {arm.name!r} ({arm.path}) are one SAE"
            raise InputError(f"run: the same arm is given twice{both}")
        seen[arm.key] = arm


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
