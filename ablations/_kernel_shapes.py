"""Part `shapes` of `kernels`: four kernels, at equal bandwidth and at equal standard deviation."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._matched import in_words
from ablations._places import apart, in_places, intervals_of, levels
from ablations._relative import relative_fvu
from ablations._threshold_noise import text
from ablations._threshold_training import DEAD, FVU, PLACES, SHARE, decided, word
from ablations._windows import EXPLAINED, FLOOR, SEEN, SHAPES
from sae_bench.contrasts import Interval, Outcome, intervals, matched

REFERENCE = "Rectangle"
AT = 32
"""L0 at which thresholds are compared."""
WAYS = {"equal eps": "bandwidth", "equal standard deviation": "deviation"}
"""Ways in which a kernel is like the rectangle, and the column that is then equal."""


def compared(table: pd.DataFrame, way: str) -> pd.DataFrame:
    """The rows of the kernels that are like the rectangle in that way, itself among them."""
    column = table[WAYS[way]]
    return table[np.isclose(column, column[table["shape"] == REFERENCE].iloc[0], rtol=1e-3)]


def effects(table: pd.DataFrame, outcome: Outcome = FVU) -> pd.DataFrame:
    """Every other shape minus the rectangle, at each of `PLACES` of L0 that both reach and in the
    mean over all, paired over seeds: columns way, contrast (the shape), outcome, and those of
    `intervals_of`. No rows without a rectangle.

    Args:
        table: what `named` gives.
        outcome: what is compared.
    """
    found = []
    for way in WAYS if REFERENCE in set(table["shape"]) else ():
        rows = compared(table, way)
        for shape in SHAPES:
            if shape != REFERENCE and shape in set(rows["shape"]):
                values = apart(rows, outcome, "shape", shape, REFERENCE)
                row = {"way": way, "contrast": shape, "outcome": outcome.name}
                found.append(intervals_of(values, PLACES).assign(**row))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def described(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    """The effects, what they decide, and what the thresholds did.

    Args:
        table: what `named` gives.
        seen: what `windows` gives; may be empty.
    """
    found = effects(table)
    said = [
        f"Kernel shape, {table['seed'].nunique()} paired seeds (weights and data order), "
        f"{table['train_tokens'].max():,.0f} tokens, threshold lr {table['threshold_lr'].max():g}. "
        f"FVU against the rectangle, means over L0 {', '.join(map(str, PLACES))}, 95% t-intervals "
        f"over seeds (below 0: better; up to {FLOOR:.1%} none):"
    ]
    if found.empty:
        return "\n".join([*said, "  the rectangle and another shape are not there: no answer."])
    calls: dict[str, dict[str, Interval]] = {}
    for way, every in found.groupby("way", sort=False):
        rows, places = every[every["l0"].isna()], every[every["l0"].notna()]
        calls[way] = intervals(rows)
        shown = ", ".join(
            f"{r.contrast} {in_words(calls[way][r.contrast])} "
            f"({word(calls[way][r.contrast], FLOOR)})"
            for r in rows.itertuples()
        )
        said.append(f"  {way}: {shown}.")
        shapes = places.groupby("contrast", sort=False)
        said += [f"    {shape}: {in_places(each)}." for shape, each in shapes]
    for way, each in calls.items():
        said.append(f"  So, at {way}: {decided(each, FLOOR)}.")
        at_floor = [n for n, x in each.items() if abs(abs(x.mean) - FLOOR) < FLOOR / 10]
        said += [f"    {name} lies at the floor itself: take the places." for name in at_floor]
    said += _widths(calls)
    shares = effects(table, SHARE)
    for way in calls:
        rows = compared(table, way)
        said += [f"  L0 at equal coefficients, {way}: {_l0_moved(rows)}."]
        said += [f"  {SHARE.name} against the rectangle, {way}: {_means(shares, way)}."]
        said += [f"  Dead latents {levels(rows, DEAD.y, 'shape')} ({way})."]
    if len(seen):
        said.append(_behaviour(table, seen))
    return "\n".join(said)


def _l0_moved(rows: pd.DataFrame) -> str:
    """L0 over the rectangle's at each coefficient, from the lowest, means over seeds."""
    means = rows.pivot_table(index="shape", columns="coefficient", values="l0")
    moved = means.div(means.loc[REFERENCE]).drop(index=REFERENCE) - 1
    shown = (f"{shape} {', '.join(f'{x:+.0%}' for x in row)}" for shape, row in moved.iterrows())
    return "; ".join(shown)


def _means(found: pd.DataFrame, way: str) -> str:
    """Those of `effects` on a share that are means over places."""
    calls = intervals(found[(found["way"] == way) & found["l0"].isna()])
    return ", ".join(f"{shape} mean {each.points()}" for shape, each in calls.items())


def _widths(calls: dict[str, dict[str, Interval]]) -> list[str]:
    """How far means and their intervals reach at equal width, which is shape alone, and at equal
    eps, where shapes differ in width, too."""
    said = []
    for way in reversed(WAYS):
        each = calls.get(way, {}).values()
        ends = np.abs([(x.mean, max(-x.low, x.high)) for x in each])
        if len(ends) and np.isfinite(ends).all():
            mean, interval = np.expm1(ends.max(axis=0))
            said.append(f"{mean:.2%} at {way} (their intervals within {interval:.1%})")
    return [f"  Means over L0 lie within {', '.join(said)}."] if said else []


def _behaviour(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    rows, place = table.merge(seen, on="arm"), [float(np.log(AT))]
    shown = []
    for way in WAYS:
        part = compared(rows, way)
        means = pd.DataFrame(
            {column: matched(part, "log_l0", column, place, "shape")[place[0]] for column in SEEN}
        )
        means = means.groupby("shape").mean()
        means = means.reindex([shape for shape in SHAPES if shape in means.index])
        means.index = means.index + f", {way}"
        shown.append(means)
    return f"  Thresholds at L0 {AT}, means over seeds ({EXPLAINED}):\n" + text(
        pd.concat(shown).rename(columns=SEEN), 3
    )


def relative(table: pd.DataFrame) -> Figure:
    """FVU against the rectangle's at equal L0, a curve a shape: at equal eps, at equal standard
    deviation."""
    panels = {f"at {way}": compared(table, way) for way in WAYS}
    return relative_fvu(panels, "shape", SHAPES, REFERENCE)
