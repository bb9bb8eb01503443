"""Writing so that a reader sees the old file or the new one, never half of one."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import xxhash

from sae_bench.components import digest, to_plain
from sae_bench.errors import DamagedFileError, InputError

CHECKSUM = "checksum"
"""Key of a record's checksum of itself."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that mean a full disk."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file under another name in the same folder, then renames it.

    Raises:
        InputError: the disk is full, whatever `write` made of that; nothing is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        if not (_tells_of_full_disk(error) or _is_on_full_disk(partial)):
            raise
        raise InputError(
            f"{path}: the disk is full; free some space and run again (what is finished is kept)"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _tells_of_full_disk(error: Exception) -> bool:
    """By its number; safetensors has it in the text alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def _is_on_full_disk(partial: Path) -> bool:
    """Whether a file that could not be finished can take no more: torch says nothing of the
    reason."""
    if not partial.exists():
        return False
    try:
        with partial.open("ab") as file:
            file.write(bytes(2**16))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in FULL
    return False


def check_name(path: Path) -> None:
    """Whether a path can be one at all, of something that is there or not.

    Raises:
        InputError: no file can have such a name, or it may not be looked at.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{str(path)!r:.100}: cannot be used ({reason}); choose another") from None


def check_writable(folder: Path) -> None:
    """Whether files can be written into a folder, which need not be there yet; makes nothing.

    Raises:
        InputError: they cannot.
    """
    check_name(folder)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None


def checksum_of(content: bytes) -> str:
    """xxh3_128 of some bytes, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(content)


def checksum(path: Path) -> str:
    """xxh3_128 of a file, in hexadecimal; it is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def check_json(value: Mapping[str, Any], place: str) -> None:
    """Whether JSON can hold a mapping, components included.

    Raises:
        InputError: it cannot; names the key.
    """
    for key, item in value.items():
        try:
            json.dumps(to_plain(item), sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{place}: {key} cannot be written as JSON ({error})") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON-ready value or component."""
    text = json.dumps(to_plain(value), indent=1, sort_keys=True)
    write_atomically(path, lambda partial: partial.write_text(text))


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON-ready mapping with a checksum of itself, for `read_record`."""
    plain = to_plain(value)
    write_json(path, {**plain, CHECKSUM: digest(plain, 32)})


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as parquet or CSV, by the name's ending."""
    if path.suffix == ".csv":
        write_atomically(path, lambda partial: table.to_csv(partial, index=False))
    else:
        write_atomically(path, lambda partial: table.to_parquet(partial, index=False))


def read_record(path: Path, kinds: Mapping[str, type] = MappingProxyType({})) -> dict[str, Any]:
    """Reads what `write_record` wrote.

    Args:
        path: of the file.
        kinds: keys that the record must have, and what they hold.

    Raises:
        InputError: no such file.
        DamagedFileError: not as it was written, or another kind of record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        intact = record.pop(CHECKSUM) == digest(record, 32)
        intact &= all(isinstance(record[key], kind) for key, kind in kinds.items())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise DamagedFileError(f"{path}: damaged (not as it was written)")
    return record


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        InputError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: not valid JSON (nested too deeply)") from None
