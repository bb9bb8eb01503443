"""What a result was made with: versions, code, command, hardware, and what of it repeats."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import torch


def environment(device: torch.device) -> dict[str, Any]:
    """JSON-ready record of this process on `device`.

    Equal records promise equal bits on the CPU; `determinism` says what is promised elsewhere.
    """
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(Path(__file__).parent),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": str(device),
        "accelerators": [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ],
        "determinism": determinism(device),
    }


def versions() -> dict[str, str]:
    """Version of every installed distribution."""
    found = {each.metadata["Name"]: each.version for each in distributions()}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def commit(folder: Path) -> str | None:
    """The commit that the code in `folder` was checked out from, with `-modified` if tracked files
    differ from it; None outside a repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None  # installed into somebody else's repository
        modified = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-modified" if modified else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def determinism(device: torch.device) -> str:
    """What the same command gives again."""
    if device.type == "cpu":
        return "same bits on this kind of processor with the same number of threads and versions"
    return (
        f"same seeds and batches; {device.type} sums in no fixed order, and steps go the way that "
        "was timed as the faster, so bits may differ between runs"
    )
