"""Where the bridges lie beside the cells of the factorial: its two ends, and JumpReLU + L1."""

import math
from collections.abc import Iterable

import pandas as pd

from ablations._squares import saying
from sae_bench.contrasts import Outcome, matched, t_interval

BESIDE = ("ReLU + L1", "JumpReLU + L0 (theta)", "JumpReLU + L1 (input)")
"""The cells that bridges are held against."""


def beside_cells(
    table: pd.DataFrame, bridges: Iterable[str], outcomes: Iterable[Outcome]
) -> list[str]:
    """Each bridge against each of `BESIDE`, place by place and in the mean over places: differences
    of the seeds that both have, with 95% t-intervals over them.

    Args:
        table: what `_lines.prepared` gives.
        bridges: those of them that the table has are told.
        outcomes: compared at matched L0.
    """
    held = set(table["cell"])
    return [
        line
        for outcome in outcomes
        for bridge in bridges
        for other in BESIDE
        if {bridge, other} <= held and (line := _over(table, bridge, other, outcome))
    ]


def _over(table: pd.DataFrame, bridge: str, other: str, outcome: Outcome) -> str:
    places = outcome.places(table, "cell", (bridge, other))
    values = matched(table, outcome.x, outcome.y, places, "cell")
    apart, say = values.loc[bridge] - values.loc[other], saying(outcome)
    found = [f"L0 {math.exp(x):.0f} {say(t_interval(apart[x].to_numpy(float)))}" for x in places]
    found.append(f"mean {say(t_interval(apart.mean(axis=1).to_numpy(float)))}")
    return f"  {bridge} over {other}, {outcome.name}: {', '.join(found)}." if places else ""
