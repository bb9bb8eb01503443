"""Where the suite keeps what it downloads or derives."""

import os
from pathlib import Path


def cache_root() -> Path:
    """The user's cache folder: `$SAE_BENCH_CACHE`, else `$XDG_CACHE_HOME/sae_bench`, else
    `~/.cache/sae_bench`. It need not exist yet."""
    if chosen := os.environ.get("SAE_BENCH_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "sae_bench"
    return Path.home() / ".cache" / "sae_bench"
