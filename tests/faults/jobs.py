"""What is killed: whole runs from the command line, in folders with awkward names."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_bench import reading, splicing
from sae_bench.cli import main
from sae_bench.reconstruction import Meter
from sae_bench.store import RunFolder
from sae_bench.train import Trainee
from tests.desk import contents
from tests.faults.chain import AfterSeconds, AtCall, Moment, Point

POINTS = [
    Point("extraction", reading, "capture"),
    Point("training", Trainee, "step"),
    Point("measuring", Meter, "add"),
    Point("language model", splicing, "resume_at"),
    Point("writing", os, "fsync"),
    Point("renaming", Path, "replace"),
    Point("table", RunFolder, "finish"),
]
"""Between them they cover extraction, training, checkpoints, evaluation and tables."""

TIMED = ("grid.json", "grid.copy.json", "arm.json", "table.csv", "table.parquet")
"""Files that hold times or the command; the numbers of the tables are compared without them."""


@dataclass(frozen=True)
class Desk:
    """A folder with a model, a text and an ablation file, in which runs are made.

    Args:
        folder: the desk.
        words: the command.
    """

    folder: Path
    words: tuple[str, ...]

    def job(self) -> None:
        """The command, with everything it keeps below the desk."""
        os.chdir(self.folder)
        os.environ["SAE_BENCH_CACHE"] = str(self.folder / "kept")
        assert main([*self.words, "--out", "out"]) == 0

    def aside(self) -> None:
        """Moves what a finished run left into a folder of its own."""
        number = len(list(self.folder.glob("finished-*")))
        target = self.folder / f"finished-{number}"
        target.mkdir()
        for name in ("out", "kept"):
            (self.folder / name).rename(target / name)

    def differences(self) -> list[str]:
        """What is not bit for bit the same in all the finished runs."""
        first, *others = sorted(self.folder.glob("finished-*"))
        wanted = results(first)
        found = []
        for other in others:
            other_results = results(other)
            names = wanted.keys() ^ other_results.keys()
            names |= {
                n for n in wanted.keys() & other_results.keys() if wanted[n] != other_results[n]
            }
            found += [f"{other.name}: {name}" for name in sorted(names)]
        return found


def results(folder: Path) -> dict[str, bytes]:
    """What must be the same bit for bit: every file of a run and its caches but those that tell the
    time, and the numbers of the table."""
    import pandas as pd  # starts threads, which would not survive a fork

    files = {
        name: content
        for part in ("out", "kept")
        for name, content in contents(folder / part).items()
        if not name.endswith((*TIMED, ".lock", "manifest.json"))
    }
    table = pd.read_parquet(folder / "out" / "table.parquet").drop(columns="seconds")
    return files | {"table": table.to_csv().encode()}


def moments(counts: dict[str, int], seconds: float, seed: int) -> Iterator[Moment]:
    """Moments of death without end: every fourth by a timer, the others at the points in turn, at
    a random one of their calls, before it or after it."""
    chosen = random.Random(seed)
    called = [point for point in POINTS if counts[point.name]]
    index = 0
    while True:
        index += 1
        if index % 4 == 0:
            yield AfterSeconds(chosen.uniform(0, seconds))
            continue
        point = called[index % len(called)]
        yield AtCall(point, chosen.randrange(counts[point.name]), chosen.random() < 0.5)
