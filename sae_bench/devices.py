"""Where tensors live: every decision about devices stands here."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sae_bench.errors import InputError


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, else the accelerator of this machine, else the CPU.

    Raises:
        InputError: the device asked for does not exist here.
    """
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return resolved


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device` (the CPU: available memory)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def now(device: torch.device) -> float:
    """Seconds on a clock, read when `device` has done all that it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Host tensor from which copies to `device` can be asynchronous (page-locked for CUDA)."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def give_memory_back() -> None:
    """From here on the C library gives large arrays that are freed back to the system, and what is
    free now: gaps between arrays that stay, too. Only glibc can."""
    _mallopt(keep=False)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def keep_memory() -> None:
    """From here on the C library keeps what is freed: page faults of a step's large temporaries
    cost as much as its arithmetic. Arrays that stay should be made before, as they leave gaps
    between temporaries."""
    _mallopt(keep=True)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Inside as after `keep_memory`, afterwards as after `give_memory_back`."""
    keep_memory()
    try:
        yield
    finally:
        give_memory_back()


def _mallopt(keep: bool) -> None:
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
        mallopt(M_MMAP_MAX, 0 if keep else 1 << 16)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1 if keep else 1 << 20)
