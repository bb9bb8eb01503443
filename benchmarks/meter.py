"""Clock and memory of this process, on any device."""

import re
import resource
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long work takes, until the device has done it."""
    wait(device)
    started = perf_counter()
    work()
    wait(device)
    return perf_counter() - started


def wait(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Memory:
    """Memory above what the process held when this was made, in MB (10^6 bytes).

    CPU: resident memory; its peak is the kernel's high-water mark, which Linux can reset, elsewhere
    the process's peak since its start (an upper bound). CUDA: memory of PyTorch's allocator.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._now()
        self.restart()

    def restart(self) -> None:
        """The peak is counted from here."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif CLEAR.exists():
            CLEAR.write_text("5")

    def peak_mb(self) -> float:
        """Largest memory since `restart`, above that at the start."""
        return (self._peak() - self._before) / 1e6

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _status("VmRSS") if STATUS.exists() else _largest()

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _status("VmHWM") if STATUS.exists() else _largest()


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
