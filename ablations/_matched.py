"""Effects of the training context at matched L0, for every evaluation context and line."""

import math

import numpy as np
import pandas as pd

from ablations._lines import prepared
from sae_bench.contrasts import Interval, Outcome, common_range, matched, t_interval

LINES = ("TopK", "JumpReLU")
VARIABLE = "variable"
PLACES = tuple(float(x) for x in np.log((16, 32, 64)))
FVU = Outcome("log_fvu", "log_l0", "FVU", PLACES)
LOSS = Outcome("log_delta_lm_loss", "log_l0", "delta LM loss", PLACES[:2])
ALL, BOTH = "all", "both"
"""Means over evaluation sets, and over lines."""


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that were measured, with line and logarithms."""
    known = prepared(table)
    return known.assign(line=known["architecture"])


def lengths_of(table: pd.DataFrame) -> list[str]:
    """The evaluation sets: lengths, ascending."""
    return sorted(table["eval_set"].unique(), key=int)


def trained_on(table: pd.DataFrame) -> list[str]:
    """The training contexts, fixed ones first."""
    found = set(table["part"])
    return [name for name in (*lengths_of(table), VARIABLE) if name in found]


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Every training context minus the reference, mean over places, paired over seeds: columns
    outcome, evaluate (a set or `ALL`), line (or `BOTH`), contrast (the training context), mean,
    low, high, n; places, the fewest that a mean is over.

    Args:
        table: one row an arm, part and evaluation set, with line and logarithms.
    """
    sets, trained = lengths_of(table), trained_on(table)
    reference = sets[1]
    rows = []
    for outcome in (FVU, LOSS):
        apart: dict[tuple[str, str, str], pd.Series] = {}
        count: dict[tuple[str, str], int] = {}
        for (evaluate, line), part in table.groupby(["eval_set", "line"]):
            low, high = common_range(part, outcome.x, outcome.y, "part", trained)
            places = [x for x in outcome.at if low <= x <= high]
            means = matched(part, outcome.x, outcome.y, places, "part").mean(axis=1)
            count[evaluate, line] = len(places)
            for name in trained:
                apart[evaluate, line, name] = means.loc[name] - means.loc[reference]
        for evaluate in (*sets, ALL):
            for line in (*LINES, BOTH):
                cells = [(e, i) for e, i in count if evaluate in (e, ALL) and line in (i, BOTH)]
                for name in trained:
                    each = pd.concat([apart[*cell, name] for cell in cells], axis=1)
                    found = t_interval(each.mean(axis=1, skipna=False).to_numpy(float))
                    rows.append(
                        {"outcome": outcome.name, "evaluate": evaluate, "line": line}
                        | {"contrast": name, **vars(found)}
                        | {"places": min(count[cell] for cell in cells)}
                    )
    return pd.DataFrame(rows)


def interval_of(found: pd.DataFrame, **chosen: str) -> Interval:
    """The one effect of `found` (see `effects`) with these values in its columns."""
    rows = found
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    row = rows.iloc[0]
    return Interval(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))


def in_percent(effect: Interval) -> str:
    """An effect in words; where curves have no common place, that."""
    return effect.percent() if math.isfinite(effect.mean) else "no common range of L0"
