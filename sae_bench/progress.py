"""How far work has come: a bar on a terminal, a line a minute on stderr where there is none."""

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

EVERY = 60.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Shows that work goes on, and how long it will take. Use as a context.

    Args:
        name: of the work.
        total: units of it.
        unit: what they are called.
        done: units that were done before.
    """

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done = self._before = done
        self._note = ""
        self._started = self._shown = monotonic()
        self._bar = tqdm(desc=name, initial=done, total=total, unit=f" {unit}", disable=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def note(self, text: str) -> None:
        """Something to show beside the numbers from now on."""
        self._note = text
        self._bar.set_postfix_str(text, refresh=False)

    def update(self, units: int = 1) -> None:
        """More of it is done."""
        self._done += units
        self._bar.update(units)
        now = monotonic()
        if self._bar.disable and now - self._shown >= EVERY:
            self._shown = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        here = max(self._done - self._before, 1)
        left = seconds / here * max(self._total - self._done, 0)
        parts = [
            f"{self._name}: {self._done} of {self._total} {self._unit}",
            f"{_clock(seconds)} so far, {_clock(left)} to go",
            self._note,
        ]
        return ", ".join(part for part in parts if part)


def shown(items: Iterable[T], name: str, total: int, unit: str) -> Iterator[T]:
    """The items one by one, with a `Progress`."""
    with Progress(name, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
