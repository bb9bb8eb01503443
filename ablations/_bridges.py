"""Where the bridges lie beside the cells of the factorial: its two ends, and JumpReLU + L1."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from ablations._places import apart, intervals_of, reached
from ablations._squares import saying
from ablations._threshold_noise import text
from sae_bench.contrasts import Interval, Outcome

BESIDE = ("ReLU + L1", "JumpReLU + L0 (theta)", "JumpReLU + L1 (input)")
"""The cells that bridges are held against."""


def from_cells(
    table: pd.DataFrame, bridges: Iterable[str], outcomes: Iterable[Outcome]
) -> pd.DataFrame:
    """Every bridge (of) minus each of `BESIDE` (to), place by place and in the mean over the places
    that both reach, of the seeds that both have: columns outcome, of, to, and those of
    `intervals_of`; no rows where they share no place.

    Args:
        table: what `_lines.prepared` gives.
        bridges: those of them that the table has are told.
        outcomes: compared at matched L0.
    """
    held, rows = set(table["cell"]), [pd.DataFrame()]
    known = [bridge for bridge in bridges if bridge in held]
    for outcome in outcomes:
        for other in (each for each in BESIDE if each in held):
            for bridge in known:
                found = apart(table, outcome, "cell", bridge, other)
                if places := reached(found):
                    row = {"outcome": outcome.name, "of": bridge, "to": other}
                    rows.append(intervals_of(found, places).assign(**row))
    return pd.concat(rows, ignore_index=True)


def beside_cells(
    table: pd.DataFrame, bridges: Iterable[str], outcomes: Sequence[Outcome]
) -> list[str]:
    """`from_cells` in words: a table for each outcome and each of `BESIDE`. Arguments as there."""
    found, said = from_cells(table, bridges, outcomes), []
    by_name = {outcome.name: outcome for outcome in outcomes}
    for (name, other), rows in found.groupby(["outcome", "to"], sort=False) if len(found) else ():
        say = saying(by_name[name])
        shown: dict[str, dict[str, str]] = {}
        for r in rows.itertuples():
            place = "mean" if math.isnan(r.l0) else f"L0 {r.l0:g}"
            shown.setdefault(r.of, {})[place] = say(Interval.of(r))
        table_of = pd.DataFrame.from_dict(shown, orient="index").fillna("-")
        said.append(f"{name}, over {other}:\n{text(table_of)}")
    return said
