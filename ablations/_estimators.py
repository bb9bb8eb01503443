"""The lines of `kde_state`: five states, each with straight-through and exact-jump coefficients.

A line is called by its state, and `, exact jump` behind it where that is the coefficient.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae_bench import bands
from sae_bench.estimators import (
    BatchKDE,
    Estimator,
    ExactJump,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    SpreadRule,
    StraightThrough,
    WindowKDE,
)
from sae_bench.kernels import Kernel
from sae_bench.samples import Coefficient

STEPS = 8
"""T, unless it is what varies."""


@dataclass(frozen=True)
class Pull:
    """What a sample contributes, and what goes with it.

    Args:
        coefficient: straight-through or exact jump.
        rate: at which bandwidths that persist shrink with the number of samples (`SpreadRule`).
    """

    coefficient: Coefficient
    rate: float


PULLS: Mapping[str, Pull] = {
    "": Pull(StraightThrough(), 1 / 3),
    ", exact jump": Pull(ExactJump(), 1 / 5),
}
PULL_NAMES = {pull: pull.removeprefix(", ") or "straight-through" for pull in PULLS}
"""What the lines of a pull are called together."""
Make = Callable[[Kernel, Pull, int], Estimator]
"""An estimator of a kernel, a pull and a number of steps T."""


def batch(kernel: Kernel, pull: Pull, steps: int) -> Estimator:
    """No state."""
    return BatchKDE(kernel, coefficient=pull.coefficient)


def persistent(kernel: Kernel, pull: Pull, steps: int) -> Estimator:
    """The present batch, at bandwidths that persist."""
    return PersistentBandwidth(
        BatchKDE(kernel, coefficient=pull.coefficient), SpreadRule(rate=pull.rate)
    )


REMEMBERING: Mapping[str, Make] = {
    "momentum": lambda k, pull, t: MomentumKDE(k, steps=t, coefficient=pull.coefficient),
    "mean": lambda k, pull, t: MeanKDE(k, steps=t, coefficient=pull.coefficient),
    "window": lambda k, pull, t: WindowKDE(k, steps=t, coefficient=pull.coefficient, slots=64),
}
"""States of the last T steps."""
STATES: Mapping[str, Make] = {"batch": batch, **REMEMBERING, "persistent bandwidth": persistent}
LINES = tuple(state + pull for pull in PULLS for state in STATES)
KINDS = {
    "BatchKDE": "batch",
    "MomentumKDE": "momentum",
    "MeanKDE": "mean",
    "WindowKDE": "window",
    "PersistentBandwidth": "persistent bandwidth",
}
"""How labels of estimators begin."""


def lines(kernel: Kernel, steps: int = STEPS) -> dict[str, Estimator]:
    """The estimator of each line."""
    return {
        state + name: make(kernel, pull, steps)
        for name, pull in PULLS.items()
        for state, make in STATES.items()
    }


def panel(kernels: Mapping[Kernel, Iterable[int]]) -> list[Estimator]:
    """Every line around each kernel, those that remember once for each of its numbers of steps."""
    every = (
        estimator
        for kernel, memories in kernels.items()
        for steps in memories
        for estimator in lines(kernel, steps).values()
    )
    return list(dict.fromkeys(every))


def line(labels: pd.Series) -> pd.Series:
    """The line that each label of an estimator belongs to."""
    state = labels.str.split("(").str[0].map(KINDS)
    return state + labels.str.contains("ExactJump").map({True: ", exact jump", False: ""})


def look(name: str) -> dict[str, Any]:
    """A colour and a marker for each state; dashed and hollow with exact jumps."""
    state, *exact = name.split(", ")
    index = list(STATES).index(state)
    return {
        "color": bands.COLOURS[index],
        "marker": bands.MARKERS[index],
        "linestyle": "--" if exact else "-",
        "markerfacecolor": "white" if exact else bands.COLOURS[index],
        "markersize": 3.2,
        "linewidth": 1.0,
    }
