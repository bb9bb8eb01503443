"""The lines of the factorial: six cells and five bridges, their settings and their tuning.

Coefficients are in training units (E||x||^2 = 1). They spread L0 from about 250 to 8, evenly in its
logarithm, at the scale of the preset `study`: by log-log interpolation between the two settings of
the winning trial of the preset `tuning`, with L0 falling to 0.8 to 0.9 of it in twice the tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from architectures import GatedRIL1SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from architectures.topk import AuxK
from sae_bench import bands, plots
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm, grid
from sae_bench.components import Component
from sae_bench.contrasts import interpolate
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1, RIL1, Penalty, QuadraticFrequency, Tanh
from sae_bench.plots import Look
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder


@dataclass(frozen=True)
class Tuned(Component):
    """What is tuned for each line.

    Args:
        lr, threshold_lr: learning rates.
        start: of the thresholds.
        bandwidth: eps.
    """

    lr: float = 4e-3
    threshold_lr: float = 1e-1
    start: float = 0.04
    bandwidth: float = 0.02

    @property
    def activation(self) -> JumpReLU:
        """JumpReLU with these thresholds."""
        return JumpReLU(LogThreshold(self.start))

    def estimator(self, to_input: bool = False) -> BatchKDE:
        """The batch estimate with this window."""
        return BatchKDE(Rectangle(self.bandwidth), to_input=to_input)

    def slower(self, times: float) -> "Tuned":
        """With both learning rates divided by this."""
        return self.replace(lr=self.lr / times, threshold_lr=self.threshold_lr / times)


BANDS = "Curves are means over seeds, bands span them, markers are means of a setting."
"""Caption of frontiers."""

Slots = Callable[[float, Tuned], Mapping[str, Any]]
"""The slots of a line, from what its sparsity hangs on and what was tuned."""


@dataclass(frozen=True)
class Line:
    """A line of the figures: a cell or a bridge.

    Args:
        architecture: the class.
        slots: its slots.
        settings: six of the former, from dense to sparse; L0 from about 250 to 8.
        windowed: whether it has a window around thresholds, and so more to tune than a rate.
    """

    architecture: type[SparseAutoencoder]
    slots: Slots
    settings: tuple[float, ...]
    windowed: bool = False

    def arms(
        self, setting: float, tuned: Tuned, d_sae: int, recipe: Recipe, seeds: Sequence[int]
    ) -> list[Arm]:
        """Its arms at a setting, one a seed, with the tuned learning rates."""
        rates = recipe.replace(lr=tuned.lr, threshold_lr=tuned.threshold_lr)
        slots = self.slots(setting, tuned)
        return grid(self.architecture, d_sae=d_sae, recipe=rates, seed=tuple(seeds), **slots)


def coded(penalty: type[Penalty]) -> Slots:
    """A penalty whose gradient arrives through the codes: no window."""
    return lambda c, tuned: {"penalty": penalty(c)}


def stepped(penalty: type[Penalty], to_input: bool = False) -> Slots:
    """A window around the default activation's threshold."""
    return lambda c, tuned: {"penalty": penalty(c), "kernel": tuned.estimator(to_input)}


def jumping(penalty: type[Penalty], to_input: bool = False) -> Slots:
    """JumpReLU."""
    with_window = stepped(penalty, to_input)
    return lambda c, tuned: {"activation": tuned.activation, **with_window(c, tuned)}


def ranked(k: float, tuned: Tuned) -> Mapping[str, Any]:
    """TopK with AuxK."""
    return {"activation": TopK(int(k)), "aux": AuxK(dead_after=50_000)}


CELLS: Mapping[str, Line] = {
    "ReLU + L1": Line(ReLUSAE, coded(L1), (0.0073, 0.012, 0.019, 0.032, 0.052, 0.086)),
    "ReLU + L0 (input)": Line(
        ReLUSAE, stepped(L0, True), (8.2e-5, 1.7e-4, 3.3e-4, 6.9e-4, 1.4e-3, 2.9e-3), True
    ),
    "JumpReLU + L0 (theta)": Line(
        JumpReLUSAE, jumping(L0), (4.9e-5, 1e-4, 2e-4, 4.3e-4, 8.9e-4, 1.9e-3), True
    ),
    "JumpReLU + L0 (input)": Line(
        JumpReLUSAE, jumping(L0, True), (5.2e-5, 1.1e-4, 2.3e-4, 4.8e-4, 1e-3, 2.2e-3), True
    ),
    "JumpReLU + L1 (theta)": Line(
        JumpReLUSAE, jumping(L1), (0.0025, 0.0046, 0.0085, 0.016, 0.031, 0.058), True
    ),
    "JumpReLU + L1 (input)": Line(
        JumpReLUSAE, jumping(L1, True), (0.0046, 0.0079, 0.014, 0.024, 0.042, 0.074), True
    ),
}
BRIDGES: Mapping[str, Line] = {
    "ReLU + Tanh": Line(ReLUSAE, coded(Tanh), (1.2e-4, 2.3e-4, 4.5e-4, 8.8e-4, 1.7e-3, 3.2e-3)),
    "Gated": Line(GatedSAE, coded(L1), (0.017, 0.028, 0.045, 0.074, 0.117, 0.19)),
    "Gated RI-L1": Line(GatedRIL1SAE, coded(RIL1), (0.0094, 0.015, 0.025, 0.04, 0.064, 0.103)),
    "TopK": Line(TopKSAE, ranked, (256, 128, 64, 32, 16, 8)),
    "JumpReLU + quadratic": Line(
        JumpReLUSAE,
        jumping(QuadraticFrequency),
        (5e-6, 1.6e-5, 5.3e-5, 1.75e-4, 5.5e-4, 1.8e-3),
        True,
    ),
}
LINES: Mapping[str, Line] = {**CELLS, **BRIDGES}

LOOKS: Mapping[str, Look] = {
    **bands.ordered(CELLS),
    "ReLU + Tanh": Look("#88CCEE", "<", "-"),
    **plots.looks(["Gated", "TopK"]),
    "Gated RI-L1": plots.looks(["GatedRIL1"])["GatedRIL1"],
    "JumpReLU + quadratic": Look("#882255", ">", "-"),
}
"""How each line is drawn; architectures as in all figures."""


def styled(names: Iterable[str]) -> dict[str, Look]:
    """These lines in their looks."""
    return {name: LOOKS[name] for name in names}


RATES = tuple(Tuned(lr=lr) for lr in (1e-3, 2e-3, 4e-3, 8e-3, 1.2e-2, 1.6e-2, 2.4e-2))
"""The trials of a line without a window."""
WINDOWS = (
    Tuned(),
    Tuned(lr=2e-3),
    Tuned(threshold_lr=3e-2, start=0.03),
    Tuned(start=0.02, bandwidth=0.01),
    Tuned(lr=8e-3),
    Tuned(lr=8e-3, threshold_lr=3e-2, start=0.03),
    Tuned(lr=1.6e-2),
)
"""The trials of a line with one: as many."""
TRIALS = {name: WINDOWS if line.windowed else RATES for name, line in LINES.items()}
TUNED = {name: (Tuned(lr=8e-3),) for name in LINES} | {
    name: (Tuned(lr=8e-3, threshold_lr=3e-2, start=0.03),)
    for name in ("JumpReLU + L1 (theta)", "JumpReLU + L1 (input)", "JumpReLU + quadratic")
}
"""The trial that won for each line, or is within `CLOSE` of it."""
WIDE_TRIALS = {
    name: tuple(tuned.slower(times) for times in (1, 2, 4, 8, 16, 0.5))
    for name, (tuned,) in TUNED.items()
}
"""The trials of a line with many more latents."""
CLOSE = 0.01
"""Relative difference of FVU up to which trials are alike."""


NAMED = {
    "TopK + NoPenalty": "TopK",
    "Gated + L1": "Gated",
    "GatedRIL1 + RIL1": "Gated RI-L1",
    "JumpReLU + QuadraticFrequency (theta)": "JumpReLU + quadratic",
}


def cell(table: pd.DataFrame) -> pd.Series:
    """The name of each row's line."""
    kernel = table["kernel"].fillna("").astype(str)
    path = kernel.str.contains("to_input=True").map({True: " (input)", False: " (theta)"})
    windowed = kernel != ""
    penalty = table["penalty"].str.replace(r"\(.*\)", "", regex=True)
    name = table["architecture"].str.removeprefix("Offset")
    return (name + " + " + penalty + path.where(windowed, "")).replace(NAMED)


def prepared(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that were measured, with their lines and logarithms; NaN where there is none."""
    table = table.dropna(subset=["l0", "seed"])
    table = table[table["l0"] > 0]
    logs = {f"log_{name}": table[name] for name in ("l0", "fvu", "delta_lm_loss")}
    logs = {name: np.log(value.where(value > 0)) for name, value in logs.items()}
    return table.assign(cell=cell(table), **logs)


def trials(table: pd.DataFrame, l0: float = 40.0) -> pd.DataFrame:
    """FVU of each tuning trial at L0 = `l0`, log-log between its settings; best trial first."""
    keys = ["cell", "lr", "threshold_lr", "activation", "kernel"]
    rows = table.fillna({"kernel": ""})
    rows = rows.assign(activation=rows["activation"].str.replace(r"TopK.*", "TopK", regex=True))
    found = [
        dict(zip(keys, key, strict=True))
        | {
            "fvu": float(
                np.exp(
                    interpolate(
                        part["log_l0"].to_numpy(), part["log_fvu"].to_numpy(), np.log([l0])
                    )[0]
                )
            )
        }
        for key, part in rows.groupby(keys, sort=False)
    ]
    order = {name: index for index, name in enumerate(LINES)}
    by_line = pd.DataFrame(found).sort_values("fvu")
    return by_line.sort_values("cell", key=lambda names: names.map(order), kind="stable")
