"""Signals wait while they are held, and act as they would have afterwards."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sae_bench.signals import ASKING, Held, held_signals


def ask(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """No test leaves a handler behind."""
    before = [signal.getsignal(number) for number in ASKING]
    yield
    assert [signal.getsignal(number) for number in ASKING] == before


def held_while(done: list[str], *numbers: int, obey: bool = False) -> None:
    """Signals arrive one after the other; `done` says what was reached."""
    with held_signals() as held:
        for number in numbers:
            ask(number)
            done.append("signal")
        if obey:
            held.obey()
        done.append("work")


def test_an_interrupt_waits() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        held_while(done, signal.SIGINT)
    assert done == ["signal", "work"]


def test_a_request_to_terminate_waits() -> None:
    done: list[str] = []
    with pytest.raises(SystemExit) as ended:
        held_while(done, signal.SIGTERM)
    assert done == ["signal", "work"]
    assert ended.value.code == 143


@pytest.mark.parametrize(
    ("number", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_it_is_obeyed_when_it_may_be(number: int, exception: type[BaseException]) -> None:
    done: list[str] = []
    with pytest.raises(exception):
        held_while(done, number, obey=True)
    assert done == ["signal"]


def test_a_later_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    now = iter([0.0, 1.1])
    monkeypatch.setattr("sae_bench.signals.time.monotonic", lambda: next(now))
    with pytest.raises(KeyboardInterrupt):
        held_while(done, signal.SIGTERM, signal.SIGINT)
    assert done == ["signal"]


def test_a_signal_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminals and wrappers both send it."""
    done: list[str] = []
    now = iter([0.0, 0.9])
    monkeypatch.setattr("sae_bench.signals.time.monotonic", lambda: next(now))
    with pytest.raises(SystemExit):
        held_while(done, signal.SIGTERM, signal.SIGTERM)
    assert done == ["signal", "signal", "work"]


def test_an_error_inside_is_not_hidden() -> None:
    def fail() -> None:
        with held_signals():
            ask(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_nothing_arrived() -> None:
    with held_signals() as held:
        held.obey()
    Held().obey()


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_signals() as held:
            ask(signal.SIGINT)
            assert held.number is None
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_receive_none() -> None:
    found: list[Any] = []

    def work() -> None:
        before = [signal.getsignal(number) for number in ASKING]
        with held_signals():
            found.append([signal.getsignal(number) for number in ASKING] == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
