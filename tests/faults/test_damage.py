"""Files that were flipped, cut or emptied, disks that fill up, inputs that vanish.

Whatever happens to a file, the same command either says in one line which file it was and what to
do, or ends with the very same numbers. It never ends with others, and never with a traceback.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_bench import reading
from sae_bench.cli import main
from sae_bench.reconstruction import Meter
from sae_bench.store import RunFolder
from sae_bench.train import Trainee
from tests.desk import furnish
from tests.faults.jobs import results

pytestmark = pytest.mark.faults

RUN = "run letters.py --device cpu --checkpoint-minutes 0 --out out"


class Stopped(BaseException):
    """Ends a run from inside, as no handler expects it."""


def flip(path: Path) -> None:
    """Inverts a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def digit(path: Path) -> None:
    """Changes the last digit of the file: JSON stays JSON."""
    content = path.read_bytes()
    *_, last = re.finditer(rb"\d", content)
    changed = b"%d" % ((int(last[0]) + 1) % 10)
    path.write_bytes(content[: last.start()] + changed + content[last.end() :])


def cut(path: Path) -> None:
    """Leaves the first half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    """Leaves nothing."""
    path.write_bytes(b"")


DAMAGES = (flip, digit, cut, empty)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = furnish(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(folder / "kept"))
    return folder


def stopped_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Runs until the `call`-th call (from 0) of a function, and stops there."""
    original, seen = getattr(owner, name), iter(range(call))

    def deadly(*arguments: Any, **options: Any) -> Any:
        if next(seen, None) is None:
            raise Stopped
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with pytest.raises(Stopped):
            main(RUN.split())


STAGES: dict[str, tuple[Any, str, int]] = {
    "extraction": (reading, "capture", 1),
    "training": (Trainee, "step", 11),
    "measuring": (Meter, "add", 2),
    "table": (RunFolder, "finish", 0),
}


def written(desk: Path) -> Iterator[Path]:
    """Every file that the program wrote."""
    for folder in ("out", "kept"):
        yield from (path for path in sorted((desk / folder).rglob("*")) if path.is_file())


def mended(message: str, desk: Path) -> None:
    """Does what the message says: removes what it names."""
    named = [Path(word) for word in re.findall(r"[\w./-]*/[\w./-]+", message)]
    inside = [path for path in named if (desk / path).exists() and desk in (desk / path).parents]
    assert inside, f"the message names no file of the run: {message}"
    target = desk / min(inside, key=lambda path: len(path.parts)) if "delete" in message else None
    assert target, f"the message does not say what to do: {message}"
    shutil.rmtree(target) if target.is_dir() else target.unlink()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files_are_named_or_made_anew(
    stage: str,
    damage: Callable[[Path], None],
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each file in turn, damaged while the run lies stopped."""
    assert main(RUN.split()) == 0
    expected = results(desk)
    for name in ("out", "kept"):
        shutil.rmtree(desk / name)
    stopped_at(monkeypatch, *STAGES[stage])
    shutil.copytree(desk / "out", desk / "saved/out") if (desk / "out").exists() else None
    shutil.copytree(desk / "kept", desk / "saved/kept")
    wrong = []
    for victim in [path.relative_to(desk) for path in written(desk) if path.stat().st_size]:
        for name in ("out", "kept"):
            shutil.rmtree(desk / name, ignore_errors=True)
            if (desk / "saved" / name).exists():
                shutil.copytree(desk / "saved" / name, desk / name)
        damage(desk / victim)
        capsys.readouterr()
        status = main(RUN.split())
        if status == 2:
            lines = capsys.readouterr().err.splitlines()
            (line,) = [line for line in lines if line.startswith("sae-bench: error: ")]
            mended(line, desk)
            status = main(RUN.split())
        assert status == 0, victim
        if results(desk) != expected:
            wrong.append(str(victim))
    assert not wrong


def test_the_disk_fills_up_at_every_write(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first write, then at the second one after it has succeeded, and so on: each run goes
    on where the one before had to stop."""
    original, full = os.fsync, 0
    assert main(RUN.split()) == 0
    expected = results(desk)
    for name in ("out", "kept"):
        shutil.rmtree(desk / name)
    for room in range(200):
        left = iter(range(room % 7))

        def filling(file: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(file)

        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", filling)
            status = main(RUN.split())
        assert not list(desk.rglob("*.partial"))
        if status == 0:
            break
        full += 1
        errors = [
            line
            for line in capsys.readouterr().err.splitlines()
            if line.startswith("sae-bench: error: ")
        ]
        assert len(errors) == 1
        assert "the disk is full" in errors[0]
    assert full >= 7
    assert main(RUN.split()) == 0
    assert results(desk) == expected


@pytest.mark.parametrize("thing", ["model", "text.jsonl"])
def test_inputs_that_vanish_and_come_back(
    thing: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half-way through extraction: one line; back again, the run ends as if nothing had been."""
    assert main(RUN.split()) == 0
    expected = results(desk)
    for name in ("out", "kept"):
        shutil.rmtree(desk / name)
    stopped_at(monkeypatch, *STAGES["extraction"])
    (desk / thing).rename(desk / "gone")
    capsys.readouterr()
    assert main(RUN.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert thing in line
    (desk / "gone").rename(desk / thing)
    assert main(RUN.split()) == 0
    assert results(desk) == expected


def test_clocks_that_jump(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back a year and forth again, between any two looks at the clock."""
    assert main(RUN.split()) == 0
    expected = results(desk)
    for name in ("out", "kept"):
        shutil.rmtree(desk / name)
    now, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now() + (next(jumps) % 2) * -3.15e7)
    stopped_at(monkeypatch, *STAGES["training"])
    for path in written(desk):
        os.utime(path, (0, 0))
    assert main(RUN.split()) == 0
    assert results(desk) == expected


def test_read_only_places_are_refused_before_any_work(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, kept in (
        (RUN.replace("--out out", "--out /proc/run"), str(desk / "kept")),
        (RUN, "/proc/kept"),
    ):
        monkeypatch.setenv("SAE_BENCH_CACHE", kept)
        assert main(words.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "/proc/" in line
    assert not (desk / "out").exists()
