"""JumpReLU -> ReLU, L0 -> L1: is the gain due to the activation, the penalty, both, or neither?

Six cells make two 2x2s: gradients to theta only where a theta exists, and straight-through to the
input throughout (ReLU has no theta, so its L0 penalty must reach the pre-activations):

    ReLU + L1, ReLU + L0 (input), JumpReLU + L0 (theta), JumpReLU + L0 (input),
    JumpReLU + L1 (theta), JumpReLU + L1 (input).

For an isolated latent dE/dtheta >= 0 under L1: thresholds fall to 0 and JumpReLU + L1 collapses
into ReLU + L1. That is a consequence of the loss, not an interaction. Only a pilot exists so far:
it shows that every cell trains.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from architectures import JumpReLUSAE, ReLUSAE
from sae_bench import plots
from sae_bench.ablation import Data, Preset, Results
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.arm import Arm, grid
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.penalties import L0, L1
from sae_bench.recipe import Recipe
from sae_bench.text import Documentation, Excerpts


@dataclass(frozen=True)
class Factorial(Preset):
    """A preset with the settings of the cells.

    Args:
        l1, l0: coefficients of the two penalties.
        threshold: start of the thresholds.
        kernel: window around them.
        seeds: seeds of every cell, paired.
    """

    l1: tuple[float, ...] = (2e-2, 4e-2, 8e-2)
    l0: tuple[float, ...] = (1e-4, 4e-4, 1.5e-3)
    threshold: LogThreshold = LogThreshold(0.04)
    kernel: Kernel = Rectangle(0.02)
    seeds: tuple[int, ...] = (0, 1)


PRESETS = {
    "pilot": Factorial(
        data=Data(text=Excerpts(Documentation(), 1_500), lm_tokens=2_048),
        d_sae=1152,
        recipe=Recipe(
            tokens=256_000,
            batch_size=256,
            lr=4e-3,
            threshold_lr=1e-1,
            betas=(0.9, 0.999),
            lr_warmup=40,
            lr_decay=200,
            penalty_warmup=200,
            centre=True,
        ),
    ),
}


def arms(preset: Factorial) -> list[Arm]:
    """Six cells, each over its coefficients and seeds."""
    theta, both = BatchKDE(preset.kernel), BatchKDE(preset.kernel, to_input=True)
    common: dict[str, Any] = {"d_sae": preset.d_sae, "recipe": preset.recipe, "seed": preset.seeds}
    jump = {**common, "activation": JumpReLU(preset.threshold)}
    l1, l0 = [L1(c) for c in preset.l1], [L0(c) for c in preset.l0]
    return [
        *grid(ReLUSAE, penalty=l1, **common),
        *grid(ReLUSAE, penalty=l0, kernel=both, **common),
        *grid(JumpReLUSAE, penalty=l0, kernel=[theta, both], **jump),
        *grid(JumpReLUSAE, penalty=l1, kernel=[theta, both], **jump),
    ]


def cell(table: pd.DataFrame) -> pd.Series:
    """The name of each row's cell."""
    to_input = table["kernel"].str.contains("to_input=True").fillna(False)
    path = to_input.map({True: " (input)", False: " (theta)"})
    trained = table["kernel"].fillna("") != ""
    return table["architecture"] + " + " + table["penalty"] + path.where(trained, "")


def figures(results: Results) -> dict[str, Figure]:
    """FVU against L0, one line a cell."""
    drawn = plots.figure(5.0, 3.2)
    table = results.table.assign(cell=cell(results.table))
    axes = plots.frontier(table, drawn.axes[0], by="cell")
    plots.legend(drawn, axes)
    return {"fvu_vs_l0": drawn}


def answer(table: pd.DataFrame) -> str:
    """Means over seeds of each cell and coefficient; a pilot does not conclude."""
    means = table.assign(cell=cell(table)).groupby(["cell", "coefficient"])
    return means[["l0", "fvu", "delta_lm_loss", "l0_share_above_10pct"]].mean().to_string()
