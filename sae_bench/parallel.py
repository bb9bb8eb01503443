"""Compiled loops on all cores of torch's share of the machine, for arrays in host memory."""

import inspect
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch

SMALL = 1 << 17
"""Multiply-adds below which other threads would not be worth waking."""

PIECES = 4
"""Pieces for each thread: more even than one each, since rows differ in their work."""

Loop = Callable[..., None]


def loop(function: Loop) -> Loop:
    """Compiles a loop `f(first, last, *arrays)` over some rows of its output. It runs without the
    interpreter's lock, may reorder sums (the same way every time), and is kept on disk if that can
    be written."""
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    function = inspect.unwrap(function)  # type checks in tests wrap whatever is defined
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no place to keep it
        return numba.njit(**options)(function)


def share(function: Loop, bounds: Callable[[int], np.ndarray], work: int, *arrays: Any) -> None:
    """Calls `function(first, last, *arrays)` for consecutive ranges of rows, on torch's number of
    threads. Every row is one thread's, so the bits do not depend on how many there are.

    Args:
        bounds: pieces -> ascending ends of so many ranges, 0 first.
        work: multiply-adds in all.
    """
    threads = torch.get_num_threads()
    ends = bounds(1 if threads == 1 or work < SMALL else threads * PIECES)
    tasks = [(int(a), int(b)) for a, b in pairwise(ends) if b > a]
    if len(tasks) <= 1:
        for first, last in tasks:
            function(first, last, *arrays)
        return
    queue = iter(tasks)  # whoever is free takes the next: `next` on it is atomic

    def serve() -> None:
        for first, last in queue:
            function(first, last, *arrays)

    others: list[Future[None]] = [_pool(threads - 1).submit(serve) for _ in range(threads - 1)]
    serve()
    for other in others:
        other.result()


def evenly(rows: int) -> Callable[[int], np.ndarray]:
    """Ranges of equally many rows."""
    return lambda pieces: np.linspace(0, rows, min(pieces, max(rows, 1)) + 1).astype(np.int64)


def by_entries(starts: np.ndarray) -> Callable[[int], np.ndarray]:
    """Ranges of rows with about equally many entries; `starts`: where each row's begin, and the
    end of the last."""

    def bounds(pieces: int) -> np.ndarray:
        wanted = np.linspace(0, starts[-1], pieces + 1)[1:-1]
        return np.concatenate(([0], np.searchsorted(starts, wanted), [len(starts) - 1]))

    return bounds


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="sparse")
    return _pools[threads]


os.register_at_fork(after_in_child=_pools.clear)  # a child has none of its parent's threads
