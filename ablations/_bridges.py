"""Where the bridges lie beside the cells of the factorial: its two ends, and JumpReLU + L1."""

from collections.abc import Iterable

import pandas as pd

from ablations._places import apart, by_place, over, reached
from ablations._squares import saying
from sae_bench.contrasts import Outcome

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
    found, say = apart(table, outcome, "cell", bridge, other), saying(outcome)
    if not (places := reached(found)):
        return ""
    mean = say(over(found, places))
    return f"  {bridge} over {other}, {outcome.name}: {by_place(found, say)}, mean {mean}."
