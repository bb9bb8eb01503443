"""Effects of the training context at matched L0, for every evaluation context and line."""

import math
from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
import pandas as pd

from ablations._lines import prepared
from sae_bench.contrasts import Interval, Outcome, common_range, matched, t_interval

LINES = ("TopK", "JumpReLU")
VARIABLE = "variable"
PLACES = tuple(float(x) for x in np.log((16, 32, 64)))
FVU = Outcome("log_fvu", "log_l0", "FVU", PLACES)
LOSS = Outcome("delta_lm_loss", "log_l0", "delta LM loss", PLACES[:2])
"""In nats: some of them are noise around 0, which a logarithm would drop by their sign."""
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
    low, high, n; places, the values of L0, which are those that both lines reach.

    Args:
        table: one row an arm, part and evaluation set, with line and logarithms.
    """
    sets, trained = lengths_of(table), trained_on(table)
    reference = sets[1]
    rows = []
    for outcome in (FVU, LOSS):
        apart: dict[tuple[str, str, str], pd.Series] = {}
        at: dict[str, list[float]] = {}
        for evaluate, rows_in in table.groupby("eval_set"):
            by_line = dict(iter(rows_in.groupby("line")))
            ranges = [
                common_range(part, outcome.x, outcome.y, "part", trained)
                for part in by_line.values()
            ]
            lows, highs = zip(*ranges, strict=True)
            at[evaluate] = [x for x in outcome.at if max(lows) <= x <= min(highs)]
            for line, part in by_line.items():
                values = matched(part, outcome.x, outcome.y, at[evaluate], "part")
                means = values.mean(axis=1)
                for name in trained:
                    apart[evaluate, line, name] = means.loc[name] - means.loc[reference]
        for evaluate in (*sets, ALL):
            for line in (*LINES, BOTH):
                cells = [(e, i) for e in at for i in LINES if evaluate in (e, ALL)]
                cells = [(e, i) for e, i in cells if line in (i, BOTH)]
                for name in trained:
                    each = pd.concat([apart[*cell, name] for cell in cells], axis=1)
                    found = t_interval(each.mean(axis=1, skipna=False).to_numpy(float))
                    rows.append(
                        {"outcome": outcome.name, "evaluate": evaluate, "line": line}
                        | {"contrast": name, **vars(found)}
                        | {"places": _listed([at[e] for e in at if evaluate in (e, ALL)])}
                    )
    return pd.DataFrame(rows)


def interval_of(found: pd.DataFrame, **chosen: str | int) -> Interval:
    """The one effect of `found` (such as of `effects`) with these values in its columns."""
    rows = found
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    row = rows.iloc[0]
    return Interval(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))


def _listed(places: list[list[float]]) -> str:
    """`16, 32, 64`, or where evaluation sets differ in theirs `16, 32 or 16`."""
    shown = [", ".join(f"{math.exp(x):.0f}" for x in each) for each in places]
    return " or ".join(dict.fromkeys(shown))


def in_words(effect: Interval, outcome: Outcome = FVU) -> str:
    """An effect: on FVU in percent, on the loss in nats; without a common place, that."""
    if not math.isfinite(effect.mean):
        return "no common range of L0"
    return effect.percent() if outcome == FVU else effect.nats()


def opposed(
    found: pd.DataFrame, trained: Iterable[str], sets: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Training contexts and evaluation contexts in which FVU and loss, means over lines, have
    effects of opposite signs whose intervals both exclude 0.

    Args:
        found: what `effects` gives.
        trained, sets: names of training contexts and of evaluation sets.
    """
    for name, evaluate in product(trained, sets):
        where = {"line": BOTH, "evaluate": evaluate, "contrast": name}
        fvu, loss = (interval_of(found, outcome=each.name, **where) for each in (FVU, LOSS))
        if fvu.excludes_zero and loss.excludes_zero and fvu.mean * loss.mean < 0:
            yield name, evaluate
