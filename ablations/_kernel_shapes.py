"""Part `shapes` of `kernels`: four kernels, at equal bandwidth and at equal standard deviation."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._matched import in_words
from ablations._places import apart, in_places, intervals_of
from ablations._threshold_noise import text
from ablations._threshold_training import FVU, PLACES, decided, word
from ablations._windows import EXPLAINED, FLOOR, SEEN, SHAPES
from sae_bench import bands, plots
from sae_bench.contrasts import Interval, intervals

REFERENCE = "Rectangle"
WAYS = {"equal eps": "bandwidth", "equal standard deviation": "deviation"}
"""Ways in which a kernel is like the rectangle, and the column that is then equal."""


def compared(table: pd.DataFrame, way: str) -> pd.DataFrame:
    """The rows of the kernels that are like the rectangle in that way, itself among them."""
    column = table[WAYS[way]]
    return table[np.isclose(column, column[table["shape"] == REFERENCE].iloc[0], rtol=1e-3)]


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Every other shape minus the rectangle, log FVU at each of `PLACES` of L0 that both reach and
    in the mean over all, paired over seeds: columns way, contrast (the shape), and those of
    `intervals_of`. No rows without a rectangle.

    Args:
        table: what `named` gives.
    """
    found = []
    for way in WAYS if REFERENCE in set(table["shape"]) else ():
        rows = compared(table, way)
        for shape in SHAPES:
            if shape != REFERENCE and shape in set(rows["shape"]):
                values = apart(rows, FVU, "shape", shape, REFERENCE)
                found.append(intervals_of(values, PLACES).assign(way=way, contrast=shape))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def described(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    """The effects, what they decide, and what the thresholds did.

    Args:
        table: what `named` gives.
        seen: what `windows` gives; may be empty.
    """
    found = effects(table)
    said = [
        f"Kernel shape, {table['seed'].nunique()} paired seeds (weights and data order). FVU "
        f"against the rectangle, means over L0 {', '.join(map(str, PLACES))}, 95% t-intervals over "
        f"seeds (below 0: better; up to {FLOOR:.1%} none):"
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
    said += [f"  So, at {way}: {decided(each, FLOOR)}." for way, each in calls.items()]
    said += _widths(calls)
    if len(seen):
        said.append(_behaviour(table, seen))
    return "\n".join(said)


def _widths(calls: dict[str, dict[str, Interval]]) -> list[str]:
    """How far the intervals reach at equal eps, where shapes differ in width, too, and at equal
    width."""
    reach = {
        way: float(np.max(np.abs([(each.low, each.high) for each in calls[way].values()])))
        for way in WAYS
        if calls.get(way)
    }
    if len(reach) < len(WAYS) or not np.isfinite(list(reach.values())).all():
        return []
    with_width, shape = np.expm1(list(reach.values()))
    said = (
        f"  All intervals lie within {shape:.1%} at equal standard deviation, which is the bound "
        f"on shape alone, and within {with_width:.1%} at equal eps"
    )
    return [said + (": most of that is width." if shape < with_width / 2 else ".")]


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
