"""Where the bridges lie beside the cells of the factorial: its two ends, and JumpReLU + L1."""

from collections.abc import Iterable

import pandas as pd

from ablations._places import apart, over, reached
from ablations._squares import saying
from ablations._threshold_noise import text
from sae_bench.contrasts import Outcome

BESIDE = ("ReLU + L1", "JumpReLU + L0 (theta)", "JumpReLU + L1 (input)")
"""The cells that bridges are held against."""


def beside_cells(
    table: pd.DataFrame, bridges: Iterable[str], outcomes: Iterable[Outcome]
) -> list[str]:
    """A table for each outcome and each of `BESIDE`: every bridge minus that cell, place by place
    and in the mean over places, of the seeds that both have, with 95% t-intervals over them.

    Args:
        table: what `_lines.prepared` gives.
        bridges: those of them that the table has are told.
        outcomes: compared at matched L0.
    """
    held, said = set(table["cell"]), []
    known = [bridge for bridge in bridges if bridge in held]
    for outcome in outcomes:
        for other in (each for each in BESIDE if each in held):
            rows = {bridge: _over(table, bridge, other, outcome) for bridge in known}
            if shown := {bridge: row for bridge, row in rows.items() if row}:
                table_of = pd.DataFrame.from_dict(shown, orient="index").fillna("-")
                said.append(f"{outcome.name}, over {other}:\n{text(table_of)}")
    return said


def _over(table: pd.DataFrame, bridge: str, other: str, outcome: Outcome) -> dict[str, str]:
    """The differences in words, by place; none where the two share no place."""
    found, say = apart(table, outcome, "cell", bridge, other), saying(outcome)
    if not (places := reached(found)):
        return {}
    by = {f"L0 {place}": say(over(found, [place])) for place in places}
    return by | {"mean": say(over(found, places))}
