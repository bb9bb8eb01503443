"""A long run of small steps: does memory grow, do files stay open, do steps become slower?

    python -m tests.faults.soak OUT

24 arms, every architecture and every kind of estimator among them, in one run of 50,000 steps with
a checkpoint every 20 seconds. Every hundredth step is looked at from outside: soak.csv holds what
was seen, soak.png and soak.svg show it, and a line at the end gives the verdict. The exit code is 1
if something grew.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from architectures import (
    BatchTopKSAE,
    GatedRIL1SAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
)
from architectures.topk import AuxK
from sae_bench import plots
from sae_bench.activations import BatchTopK, JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm, grid
from sae_bench.estimators import (
    BatchKDE,
    ExactJump,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    SpreadRule,
    TargetCount,
    WindowKDE,
)
from sae_bench.files import write_table
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1, RIL1, QuadraticFrequency, Tanh, TargetL0, TargetMeanL0
from sae_bench.recipe import Recipe
from sae_bench.run import run
from sae_bench.source import ActivationSource
from sae_bench.store import RunFolder
from sae_bench.synthetic import SyntheticFeatures

BATCH, D_IN, D_SAE = 16, 8, 16
LOOKS = 500
"""Times that the run is looked at."""

WARM = 0.05
"""Share of the steps before the first tenth that is compared with the last."""

LARGEST = {"memory": 2.0, "files": 0.0, "slowdown": 10.0}
"""Growth that is let pass: in %, of open files in files."""


def arms(steps: int) -> list[Arm]:
    """The 24 arms; all see the same batches, and train together."""
    recipe = Recipe(
        tokens=steps * BATCH,
        batch_size=BATCH,
        lr=1e-3,
        betas=(0.9, 0.999),
        lr_warmup=steps // 100,
        lr_decay=steps // 5,
        penalty_warmup=steps // 50,
        centre=True,
    )
    common: dict[str, Any] = {"d_sae": D_SAE, "recipe": recipe}
    jump = {**common, "activation": JumpReLU(LogThreshold(0.1))}
    near = Rectangle(0.1)
    estimators = [
        BatchKDE(near, coefficient=ExactJump()),
        MomentumKDE(near, steps=8),
        MeanKDE(near, steps=8),
        WindowKDE(near, steps=8),
        WindowKDE(near, steps=8, coefficient=ExactJump()),
        PersistentBandwidth(BatchKDE(near), SpreadRule()),
        PersistentBandwidth(MomentumKDE(near, steps=8), TargetCount()),
        PersistentBandwidth(WindowKDE(near, steps=8), TargetCount()),
    ]
    fixed = {**common, "aux": AuxK(dead_after=2_000)}
    l0 = [L0(1e-2), TargetL0(target=3.0), TargetMeanL0(target=3.0), QuadraticFrequency(1e-2)]
    return [
        *grid(ReLUSAE, penalty=[L1(0.02), RIL1(0.02), Tanh(0.01, c=11.0)], **common),
        *grid(TopKSAE, activation=[TopK(2), TopK(4)], **fixed),
        *grid(BatchTopKSAE, activation=[BatchTopK(2), BatchTopK(4)], **fixed),
        *grid(MatryoshkaSAE, activation=[BatchTopK(2), BatchTopK(4)], **fixed),
        *grid(GatedSAE, penalty=[L1(0.02), L1(0.05)], **common),
        *grid(GatedRIL1SAE, penalty=RIL1(0.02), **common),
        *grid(JumpReLUSAE, penalty=l0, kernel=near, **jump),
        *grid(JumpReLUSAE, penalty=L0(1e-2), kernel=estimators, **jump),
    ]


@dataclass
class Watched(ActivationSource):
    """A source of activations that calls `look` before every `every`-th batch."""

    inner: ActivationSource
    look: Callable[[int], None]
    every: int

    def __post_init__(self) -> None:
        self.d_in, self.held_out = self.inner.d_in, self.inner.held_out

    @property
    def scale(self) -> float:
        return self.inner.scale

    def record(self) -> dict[str, Any]:
        return self.inner.record()

    def batches(
        self, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        for index, x in enumerate(self.inner.batches(batch_size, seed, start), start):
            if index % self.every == 0:
                self.look(index)
            yield x


def watched(out: Path, steps: int, every: float, device: str) -> pd.DataFrame:
    """Runs, and tells what was seen, one row a look.

    Columns: `step`; `cpu_seconds` of the process so far; `memory`, resident, in MiB; `files`, open
    descriptors (handles on Windows); `objects` that the garbage collector tracks; `step_ms`,
    milliseconds of processor time a step since the look before; `checkpoint`, the step of the
    newest one.
    """
    process, chosen, folder = psutil.Process(), arms(steps), RunFolder(out)
    open_files = process.num_handles if psutil.WINDOWS else process.num_fds
    interval = max(1, steps // LOOKS)
    rows: list[dict[str, float | None]] = []
    resumed = None

    def look(step: int) -> None:
        nonlocal resumed
        now = time.process_time()
        rows.append(
            {
                "step": step,
                "cpu_seconds": now,
                "memory": process.memory_info().rss / 2**20,
                "files": open_files(),
                "objects": len(gc.get_objects()),
                "step_ms": None if resumed is None else (now - resumed) / interval * 1e3,
                "checkpoint": folder.checkpointed(chosen[0].key),
            }
        )
        resumed = time.process_time()

    cache = SyntheticFeatures(D_IN, 2 * D_IN, mean_l0=3.0).cache(rows=4096, seed=0)
    source = Watched(cache, look, interval)
    table = run(chosen, source, out=out, device=device, checkpoint_every=every)
    assert (table["status"] == "trained").all(), table["reason"]
    return pd.DataFrame(rows)


def growth(seen: pd.DataFrame) -> dict[str, float]:
    """What changed from the first tenth of the steps after the warm-up to the last tenth: the
    median of memory and the lower quartile of processor time a step, which other work on the same
    machine moves least, in %; and the largest number of open files."""
    steps = seen["step"].max()
    first = seen[seen["step"].between(WARM * steps, (WARM + 0.1) * steps)]
    last = seen[seen["step"] >= 0.9 * steps]
    return {
        "memory": 100 * (last["memory"].median() / first["memory"].median() - 1),
        "files": last["files"].max() - first["files"].max(),
        "slowdown": 100 * (last["step_ms"].quantile(0.25) / first["step_ms"].quantile(0.25) - 1),
    }


def verdict(seen: pd.DataFrame) -> tuple[str, bool]:
    """The growth in one line, and whether it is small enough."""
    grown = growth(seen)
    fine = all(grown[name] <= largest for name, largest in LARGEST.items())
    return (
        f"{'nothing grew' if fine else 'GREW'}: memory {grown['memory']:+.2f}%, "
        f"open files {grown['files']:+.0f}, time a step {grown['slowdown']:+.1f}%, by step "
        f"{seen['step'].max():,} and at least {seen['checkpoint'].nunique()} checkpoints"
    ), fine


def drawn(seen: pd.DataFrame) -> Figure:
    """Memory, open files and time a step against the step."""
    figure = plots.figure(9.0, 2.6, 1, 3)
    panels = {
        "memory": "resident memory (MiB)",
        "files": "open files",
        "step_ms": "processor time a step (ms)",
    }
    for axes, (column, label) in zip(figure.axes, panels.items(), strict=True):
        axes.plot(seen["step"] / 1000, seen[column], linewidth=0.8, color=plots.COLOURS["ReLU"])
        axes.set(xlabel="thousands of steps", ylabel=label, ylim=(0, 1.15 * seen[column].max()))
        axes.grid(alpha=0.25, linewidth=0.5)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description="Looks for growth in a long run of 24 small arms.")
    parser.add_argument("out", type=Path, help="folder for soak.csv, soak.png and the run")
    parser.add_argument("--steps", type=int, default=50_000, help="optimiser steps of each arm")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=20.0, help="seconds between two checkpoints"
    )
    parser.add_argument("--device", default="cpu", help="where to train (memory is the host's)")
    asked = parser.parse_args()
    if asked.steps < 20:
        parser.error("--steps must be at least 20")
    if (asked.out / "run").exists():
        parser.error(f"{asked.out / 'run'} exists; choose another folder, or remove it")
    seen = watched(asked.out / "run", asked.steps, asked.checkpoint_seconds, asked.device)
    write_table(asked.out / "soak.csv", seen)
    plots.save(drawn(seen), asked.out, "soak")
    line, fine = verdict(seen)
    print(line)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
