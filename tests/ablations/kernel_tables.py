"""Planted tables of the kernels' study, for the tests of its answers."""

import math
from collections.abc import Callable

import pandas as pd

from ablations import kernels
from sae_bench.arm import Arm
from sae_bench.results import Results

STUDY = kernels.STUDY
PARTS = STUDY.parts()
ARMS = {name: kernels.arms(part) for name, part in PARTS.items()}
WIDTHS = {arm.key for arm in ARMS["bandwidth"]}
COLUMNS = {name: [arm.columns() for arm in arms] for name, arms in ARMS.items()}
NONE = pd.DataFrame()


def rank(arm: Arm) -> int:
    """The place of an arm's coefficient among those of its line."""
    line = [sweep for sweep in STUDY.swept if sweep.estimator == arm.slots["kernel"]]
    known = line[0].coefficients if arm.key in WIDTHS else STUDY.coefficients
    return known.index(arm.slots["penalty"].coefficient)


def planted(part: str, effect: Callable[[Arm], float], denser: Callable[[Arm], float]) -> Results:
    """The rows of a part with log FVU = -0.5 log L0 plus an effect; `denser` multiplies L0, which
    falls from 160 to 10. Lines differ in the size of a noise of seeds whose mean is 0."""
    made = []
    for arm, columns in zip(ARMS[part], COLUMNS[part], strict=True):
        l0 = 160 / 2 ** rank(arm) * denser(arm)
        noise = (arm.seed - 1) * 0.004 * math.sin(1 + 50 * arm.slots["kernel"].kernel.bandwidth)
        row = {"part": part, "eval_set": "held-out", "l0": l0, "delta_lm_loss": math.nan}
        row |= {"status": "trained"}
        row |= {"dead": 0.6 * (l0 < 1), "l0_share_above_10pct": 0.5}
        made.append(columns | row | {"fvu": math.exp(-0.5 * math.log(l0) + effect(arm) + noise)})
    return Results(pd.DataFrame(made), NONE)


def nothing(arm: Arm) -> float:
    return 0.0


def as_dense(arm: Arm) -> float:
    return 1.0
