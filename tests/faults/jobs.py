"""What is killed: whole runs, from the command line and from a script, in folders with awkward
names."""

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from architectures import JumpReLUSAE, MatryoshkaSAE
from sae_bench import reading, splicing
from sae_bench.activations import BatchTopK, JumpReLU, LogThreshold
from sae_bench.arm import Arm, grid
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import Checkpoints
from sae_bench.cli import main
from sae_bench.contexts import Packed
from sae_bench.estimators import WindowKDE
from sae_bench.kernels import Rectangle
from sae_bench.models import LanguageModel
from sae_bench.reconstruction import Meter
from sae_bench.run import run
from sae_bench.store import RunFolder
from sae_bench.train import Trainee
from tests.desk import contents
from tests.faults.chain import AfterSeconds, AtCall, Job, Moment, Point
from tests.grids import RECIPE, four_architectures

POINTS = [
    Point("extraction", reading, "capture"),
    Point("training", Trainee, "step"),
    Point("checkpoint", Checkpoints, "save"),
    Point("measuring", Meter, "add"),
    Point("language model", splicing, "resume_at"),
    Point("writing", os, "fsync"),
    Point("renaming", Path, "replace"),
    Point("table", RunFolder, "finish"),
]
"""Between them they cover extraction, training, checkpoints, evaluation and tables."""

TIMED = ("grid.json", "grid.copy.json", "arm.json", "table.csv", "table.parquet")
"""Files that hold times or the command; the numbers of the tables are compared without them."""


def own_ablation() -> None:
    """A user's ablation file, model and text, from the command line."""
    os.environ["SAE_BENCH_CACHE"] = str(Path.cwd() / "kept")
    assert main(["run", "letters.py", "--device", "cpu", "--out", "out"]) == 0


@dataclass(frozen=True)
class DefaultModel:
    """Several architectures on the default text as the default model reads it, from a script. The
    text is that of the user's cache folder.

    Args:
        model: loaded once: a victim inherits it.
    """

    model: LanguageModel

    def __call__(self) -> None:
        """Extraction in several shards, training, evaluation."""
        site = "layers.9.resid_post"
        caches = ActivationCache.build(
            self.model,
            [site],
            "documentation",
            tokens=1000,
            held_out_tokens=250,
            context=Packed(64),
            batch_tokens=128,
            shard_tokens=250,
            root=Path("kept"),
        )
        run(self.arms(), caches[site], out="out", device="cpu", lm_tokens=64)

    def arms(self) -> list[Arm]:
        """Five architectures and an estimator with state."""
        common: dict[str, Any] = {
            "d_sae": 32,
            "recipe": RECIPE.replace(tokens=20 * RECIPE.batch_size),
        }
        jump: dict[str, Any] = {
            "activation": JumpReLU(LogThreshold(0.05)),
            "kernel": WindowKDE(Rectangle(0.05)),
        }
        return [
            *four_architectures(**common)[::2],
            *grid(MatryoshkaSAE, activation=BatchTopK(4), **common),
            *grid(JumpReLUSAE, **jump, **common),
        ]


@dataclass(frozen=True)
class Desk:
    """A folder in which runs are made: what they keep is below `out` and `kept`.

    Args:
        folder: the desk.
        work: a run, from the folder as the working directory.
    """

    folder: Path
    work: Job

    def job(self) -> None:
        """The work, with a checkpoint after every step, however much of the time that takes."""
        os.chdir(self.folder)
        Checkpoints.is_due = True  # type: ignore
        self.work()

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
    points = itertools.cycle(point for point in POINTS if counts[point.name])
    for index in itertools.count(1):
        if index % 4 == 0:
            yield AfterSeconds(chosen.uniform(0, seconds))
        else:
            point = next(points)
            yield AtCall(point, chosen.randrange(counts[point.name]), chosen.random() < 0.5)
