"""Where the suite keeps what it downloads or derives."""

import os
from pathlib import Path

from sae_bench.errors import InputError


def cache_root() -> Path:
    """The user's cache folder: `$SAE_BENCH_CACHE`, else `$XDG_CACHE_HOME/sae_bench`, else
    `~/.cache/sae_bench`. It need not exist yet."""
    if chosen := os.environ.get("SAE_BENCH_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "sae_bench"
    return Path.home() / ".cache" / "sae_bench"


def cache_folder(name: str) -> Path:
    """The folder `name` in the user's cache folder, made if it is not there.

    Raises:
        InputError: it cannot be made or written to.
    """
    return made(cache_root() / name)


def made(folder: Path) -> Path:
    """A folder of caches, made if it is not there.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error.strerror) from None
    if not os.access(folder, os.W_OK):
        raise _unusable(folder, "no permission to write")
    return folder


def _unusable(folder: Path, reason: str | None) -> InputError:
    return InputError(f"cache folder {folder}: {reason}; set SAE_BENCH_CACHE to another folder")
