"""Part `shapes` of `kernels`: four kernels, at equal bandwidth and at equal standard deviation."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._matched import in_words
from ablations._threshold_noise import text
from ablations._threshold_training import FVU, decided, word
from ablations._windows import EXPLAINED, SEEN, SHAPES
from sae_bench import bands, plots
from sae_bench.contrasts import Interval, difference, intervals

REFERENCE = "Rectangle"
WAYS = {"equal eps": "bandwidth", "equal standard deviation": "deviation"}
"""Ways in which a kernel is like the rectangle, and the column that is then equal."""


def compared(table: pd.DataFrame, way: str) -> pd.DataFrame:
    """The rows of the kernels that are like the rectangle in that way, itself among them."""
    column = table[WAYS[way]]
    return table[np.isclose(column, column[table["shape"] == REFERENCE].iloc[0], rtol=1e-3)]


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Every other shape minus the rectangle, log FVU at the places of L0 that both reach, paired
    over seeds: columns way, contrast (the shape), places, mean, low, high, n. No rows without a
    rectangle.

    Args:
        table: what `named` gives.
    """
    found = []
    for way in WAYS if REFERENCE in set(table["shape"]) else ():
        rows = compared(table, way)
        for shape in SHAPES:
            if shape != REFERENCE and shape in set(rows["shape"]):
                effect, places = difference(rows, FVU, "shape", shape, REFERENCE)
                found.append({"way": way, "contrast": shape, "places": len(places)} | vars(effect))
    return pd.DataFrame(found)


def described(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    """The effects, what they decide, and what the thresholds did.

    Args:
        table: what `named` gives.
        seen: what `windows` gives; may be empty.
    """
    found = effects(table)
    said = [
        f"Kernel shape, {table['seed'].nunique()} paired seeds (weights and data order). FVU at "
        "matched L0 against the rectangle, 95% t-intervals over seeds (below 0: better):"
    ]
    if found.empty:
        return "\n".join([*said, "  the rectangle and another shape are not there: no answer."])
    calls: dict[str, dict[str, Interval]] = {}
    for way, rows in found.groupby("way", sort=False):
        calls[way] = intervals(rows)
        shown = ", ".join(
            f"{r.contrast} {in_words(calls[way][r.contrast])} "
            f"({word(calls[way][r.contrast])}, {r.places} places)"
            for r in rows.itertuples()
        )
        said.append(f"  {way}: {shown}.")
    said += [f"  So, at {way}: {decided(each)}." for way, each in calls.items()]
    said += _widths(calls)
    if len(seen):
        said.append(_behaviour(table, seen))
    return "\n".join(said)


def _widths(calls: dict[str, dict[str, Interval]]) -> list[str]:
    """How far the intervals reach, and what the one comparison says of the other."""
    bounds = [bound for each in calls.values() for i in each.values() for bound in (i.low, i.high)]
    said = []
    if np.isfinite(bounds).all():
        reach = np.expm1(np.abs(bounds).max())
        said.append(f"  Effects of shape beyond {reach:.1%} lie outside all of these intervals.")
    by_eps, by_deviation = ({word(i) for i in calls.get(way, {}).values()} for way in WAYS)
    if by_eps & {"better", "worse"} and by_deviation == {"undecided"}:
        said.append("  What is seen at equal eps may be width alone: at equal width it is not.")
    return said


def _behaviour(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    rows = table.merge(seen, on="arm")
    shown = []
    for way in WAYS:
        means = compared(rows, way).groupby("shape")[list(SEEN)].mean()
        means = means.reindex([shape for shape in SHAPES if shape in means.index])
        means.index = means.index + f", {way}"
        shown.append(means)
    return f"  Thresholds, means over coefficients and seeds ({EXPLAINED}):\n" + text(
        pd.concat(shown).rename(columns=SEEN), 3
    )


def frontiers(table: pd.DataFrame) -> Figure:
    """FVU against L0, a curve a shape, bands over seeds: at equal eps, at equal deviation."""
    figure = plots.figure(6.8, 2.8, 1, len(WAYS))
    for way, axes in zip(WAYS, figure.axes, strict=True):
        rows = compared(table, way)
        bands.bands(rows, axes, x="l0", y="fvu", by="shape", lines=bands.ordered(SHAPES))
        bands.logarithmic(axes)
        axes.set_title(f"at {way}", fontsize=8)
        axes.legend(fontsize=6, frameon=False)
    figure.axes[1].set_ylabel("")
    return figure
