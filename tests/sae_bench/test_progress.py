"""Lines where there is no terminal: one a minute, and nothing else."""

import io

import pytest

from sae_bench import progress
from sae_bench.progress import Progress, shown


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def test_one_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training 3 arms", 1000, "steps", done=100) as bar:
        for step in range(300):
            clock.now += 0.5
            bar.note(f"L0 {step}")
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "training 3 arms: 220 of 1000 steps, 1:00 so far, 6:30 to go, L0 119",
        "training 3 arms: 340 of 1000 steps, 2:00 so far, 5:30 to go, L0 239",
    ]


def test_items_come_through(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for item in shown("abc", "reading", 3, "parts"):
        clock.now += 3600
        found.append(item)
    assert found == ["a", "b", "c"]
    assert "reading: 2 of 3 parts, 2:00:00 so far, 1:00:00 to go" in capsys.readouterr().err


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown([1, 2], "reading", 2, "parts")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("training", 10, "steps") as bar:
        clock.now += 61
        bar.update()
    assert "training" in terminal.getvalue()
    assert "to go" not in terminal.getvalue()
