"""Signals that ask a process to end, held back until work that must not be torn is done."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM)

INSISTING = 1.0
"""Seconds after which a second signal is another wish, not the same one sent on by a wrapper."""


@dataclass
class Held:
    """The signal that arrived and waits, or None."""

    number: int | None = None

    def obey(self) -> None:
        """Does what the signal asks for, if one arrived.

        Raises:
            KeyboardInterrupt: SIGINT arrived.
            SystemExit: SIGTERM arrived; the exit code is 143, as if it had killed the process.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise SystemExit(128 + self.number)


@contextmanager
def held_signals() -> Iterator[Held]:
    """Inside, a SIGINT or SIGTERM waits until `obey` is called, or until the end; another one, more
    than a second later, acts at once. The handlers that were there before are back afterwards.
    Signals that the process ignores stay ignored. Outside the main thread, which alone receives
    signals, this does nothing.
    """
    held, arrived = Held(), 0.0
    before = {number: signal.getsignal(number) for number in ASKING}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {number: old for number, old in before.items() if old not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        if held.number is None:
            held.number, arrived = number, time.monotonic()
        elif time.monotonic() - arrived > INSISTING:
            restore()
            signal.raise_signal(number)

    try:
        for number in before:
            signal.signal(number, handle)
        yield held
    finally:
        restore()
    held.obey()
