"""Work in one background thread, a bounded number of steps ahead, order kept."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def overlapped(function: Callable[[S], T], items: Iterable[S], ahead: int = 2) -> Iterator[T]:
    """`map(function, items)` with `function` running in one background thread.

    Items are taken in the caller's thread; at most `ahead` results wait, or are being computed,
    while the caller works. An exception of `function` reaches the caller in its turn. When the
    iterator is closed or `items` raises, what was already handed over is finished first.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(thread.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
