"""Chains of kills: a job is killed, and each resume is the next victim.

The parent has imported everything; a victim is a fork of it that runs the job and dies by SIGKILL,
either at the n-th call of a named function (before it or right after it) or when a timer of the
parent runs out. When a victim finishes after all, what it left is put aside and the chain starts
anew in the same place.
"""

import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Job = Callable[[], None]


@dataclass(frozen=True)
class Point:
    """A function whose calls are moments at which a victim may die."""

    name: str
    owner: Any
    attribute: str

    def wrap(self, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replaces the function in this process, for good."""
        original = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, functools.wraps(original)(around(original)))


@dataclass(frozen=True)
class AtCall:
    """Dies at the `number`-th call (from 0) of a point's function, before it or after it."""

    point: Point
    number: int
    after: bool

    def arm(self) -> None:
        """In the victim, before the job."""
        seen = 0

        def around(original: Callable[..., Any]) -> Callable[..., Any]:
            def deadly(*arguments: Any, **options: Any) -> Any:
                nonlocal seen
                seen += 1
                last = seen == self.number + 1
                if last and not self.after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*arguments, **options)
                if last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return deadly

        self.point.wrap(around)

    def await_death(self, victim: int) -> int:
        """In the parent: how the victim ended, as `os.waitpid` tells."""
        return os.waitpid(victim, 0)[1]


@dataclass(frozen=True)
class AfterSeconds:
    """Killed from outside when the time is over."""

    seconds: float

    def arm(self) -> None:
        """Nothing to prepare."""

    def await_death(self, victim: int) -> int:
        """Waits, kills, and tells how the victim ended."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            ended, status = os.waitpid(victim, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)
        return os.waitpid(victim, 0)[1]


Moment = AtCall | AfterSeconds


def fork(job: Job, prepare: Job, log: Path) -> int:
    """A child that runs `prepare` and the job with its output in `log`; it exits with 0, or with 1
    after an exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            prepare()
            job()
            status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def undisturbed(job: Job, points: Iterable[Point], log: Path) -> tuple[dict[str, int], float]:
    """Runs the job in a child that nobody kills: calls of each point's function, and seconds."""
    counts = log.with_suffix(".counts")
    calls = {point.name: 0 for point in points}

    def count() -> None:
        for point in points:

            def around(original: Callable[..., Any], name: str = point.name) -> Callable[..., Any]:
                def counted(*arguments: Any, **options: Any) -> Any:
                    calls[name] += 1
                    return original(*arguments, **options)

                return counted

            point.wrap(around)

    def counted_job() -> None:
        job()
        counts.write_text(json.dumps(calls))

    started = time.monotonic()
    status = os.waitpid(fork(counted_job, count, log), 0)[1]
    assert status == 0, log.read_text()[-3000:]
    return json.loads(counts.read_text()), time.monotonic() - started


def chain(
    job: Job, moments: Iterable[Moment], kills: int, log: Path, finished: Job
) -> dict[str, int]:
    """Kills `kills` victims, one after the other, then lets the last one finish.

    Args:
        job: what a victim runs; it goes on where the one before it died.
        moments: when to die, as many as are asked for. A call that a victim does not come to, as
            the work was done before, is waited for in the next one, which starts anew.
        kills: victims that must really have died.
        log: output of all victims.
        finished: called whenever a victim finished: puts its results aside.

    Returns:
        Deaths by the name of the point ("timer" for those from outside).
    """
    deaths: dict[str, int] = {}
    endless = iter(moments)
    while sum(deaths.values()) < kills:
        moment = next(endless)
        name = moment.point.name if isinstance(moment, AtCall) else "timer"
        died = _died(moment, job, log)
        if not died:
            finished()
            died = isinstance(moment, AtCall) and _died(moment, job, log)
            assert died or name == "timer", f"nobody came to call {moment}"
        deaths[name] = deaths.get(name, 0) + died
    status = os.waitpid(fork(job, lambda: None, log), 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[-3000:]
    finished()
    return deaths


def _died(moment: Moment, job: Job, log: Path) -> bool:
    """Whether a victim died at its moment; else it finished."""
    status = moment.await_death(fork(job, moment.arm, log))
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[-3000:]
    return False
