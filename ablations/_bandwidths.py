"""Part `bandwidth` of `kernels`: the rectangle's eps, straight-through and with exact jumps.

Rates of the thresholds are dealt with as in `_threshold_training`: all lines at the base rate, and
each line at the rate that the other seeds choose for it at the middle coefficient.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations._estimators import PULLS, look
from ablations._matched import in_words
from ablations._threshold_noise import loglog, text
from ablations._threshold_training import (
    FVU,
    WAYS,
    base_rate,
    chosen,
    decided,
    middle,
    middle_coefficient,
    replicates,
    word,
)
from ablations._windows import EXPLAINED, SEEN
from sae_bench import plots
from sae_bench.contrasts import Interval, difference, matched

AT = 32
"""L0 at which FVU is drawn."""
KINDS = {pull: pull.removeprefix(", ") or "straight-through" for pull in PULLS}
"""What the lines of a pull are called together."""
EXACT = KINDS[", exact jump"]


def line_of(bandwidth: float, pull: str) -> str:
    """The name of a line."""
    return f"eps {bandwidth:g}{pull}"


def lined(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the names of their lines.

    Args:
        table: what `named` gives.
    """
    pairs = zip(table["bandwidth"], table["pull"], strict=True)
    return table.assign(line=[line_of(bandwidth, pull) for bandwidth, pull in pairs])


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """log FVU at the places of L0 that two lines both reach, paired over seeds: columns way (how
    rates were dealt with), against, bandwidth, places, mean, low, high, n. `against` is a kind,
    for a bandwidth minus the middle one within it; or `EXACT` minus straight-through at equal
    bandwidth, as "exact jump against straight-through".

    Args:
        table: what `lined` gives.
    """
    widths, there, found = sorted(set(table["bandwidth"])), set(table["line"]), []
    reference = middle(widths)
    pairs = [
        (kind, width, line_of(width, pull), line_of(reference, pull))
        for pull, kind in KINDS.items()
        for width in widths
        if width != reference
    ]
    first, exact = KINDS
    pairs += [(BETWEEN, width, line_of(width, exact), line_of(width, first)) for width in widths]
    for way, rows_of in WAYS.items():
        rows = rows_of(table)
        for against, width, of, to in pairs:
            if {of, to} <= there:
                both = rows[rows["line"].isin((of, to))]
                effect, places = difference(both, FVU, "line", of, to)
                row = {"way": way, "against": against, "bandwidth": width, "places": len(places)}
                found.append(row | vars(effect))
    return pd.DataFrame(found)


BETWEEN = f"{EXACT} against {KINDS['']}"


def described(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    """The effects, what they decide, and what the thresholds did.

    Args:
        table: what `lined` gives.
        seen: what `windows` gives; may be empty.
    """
    found = effects(table)
    reference = middle(sorted(set(table["bandwidth"])))
    said = [
        f"Bandwidth of the rectangle, {table['seed'].nunique()} paired seeds (weights and data "
        f"order). FVU at matched L0 against eps {reference:g}, 95% t-intervals over seeds (below "
        "0: better), each over the places of L0 that both reach:"
    ]
    if found.empty:
        return "\n".join([*said, "  there is nothing to compare: no answer."])
    for way, parts in found.groupby("way", sort=False):
        said.append(f"  {way}:")
        said += [_sentence(str(kind), rows) for kind, rows in parts.groupby("against", sort=False)]
    own = found[found["way"] == list(WAYS)[1]]
    for kind, rows in own.groupby("against", sort=False):
        said.append(f"  So, each at its own rate, {kind}: {decided(_calls(rows))}.")
    said.append(_rates(table))
    if len(seen):
        said.append(_behaviour(table, seen))
    return "\n".join(said)


def _calls(rows: pd.DataFrame) -> dict[str, Interval]:
    return {f"eps {r.bandwidth:g}": Interval(r.mean, r.low, r.high, r.n) for r in rows.itertuples()}


def _sentence(kind: str, rows: pd.DataFrame) -> str:
    shown = ", ".join(
        f"{name} {in_words(each)} ({word(each)}, {places} places)"
        for (name, each), places in zip(_calls(rows).items(), rows["places"], strict=True)
    )
    return f"    {kind}: {shown}."


def _rates(table: pd.DataFrame) -> str:
    picked = chosen(table).groupby("line", sort=False)["rate"]
    shown = picked.agg(lambda rates: " or ".join(f"{rate:g}" for rate in sorted(set(rates))))
    order = [line_of(w, pull) for pull in PULLS for w in sorted(set(table["bandwidth"]))]
    parts = [f"{name} {shown[name]}" for name in order if name in shown.index]
    return "  Threshold lr chosen, by the other seeds: " + "; ".join(parts) + "."


def _centre(table: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds at the base rate and the middle coefficient: index pull and bandwidth."""
    rows = replicates(table).merge(seen, on="arm")
    rows = rows[np.isclose(rows["threshold_lr"], base_rate(table))]
    rows = rows[np.isclose(rows["coefficient"], middle_coefficient(table))]
    return rows.groupby(["pull", "bandwidth"])[["l0", "fvu", *SEEN]].mean()


def _behaviour(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    means = _centre(table, seen)
    means.index = pd.Index([line_of(width, pull) for pull, width in means.index])
    return (
        f"  At coefficient {middle_coefficient(table):g} and threshold lr {base_rate(table):g}, "
        f"means over seeds ({EXPLAINED}):\n"
        + text(means.rename(columns=SEEN | {"l0": "L0", "fvu": "FVU"}), 3)
    )


# -- figures --------------------------------------------------------------------------------------


def fvu_drawn(table: pd.DataFrame) -> Figure:
    """FVU at L0 = AT against eps, means over seeds with bars that span them: at one rate, and each
    line at its own. Lines that do not reach that L0 with all seeds are left out."""
    figure = plots.figure(6.8, 3.0, 1, len(WAYS))
    for (way, rows_of), axes in zip(WAYS.items(), figure.axes, strict=True):
        values = np.exp(matched(rows_of(table), FVU.x, FVU.y, [float(np.log(AT))], "line"))
        places = {pull: _at_line(table, values.iloc[:, 0], pull) for pull in PULLS}
        for pull, points in places.items():
            mean = points.mean(axis=1, skipna=False)
            bars = np.stack([mean - points.min(axis=1), points.max(axis=1) - mean])
            axes.errorbar(points.index, mean, yerr=bars, label=KINDS[pull], **look("batch" + pull))
        _widths(axes, f"FVU at L0 {AT}")
        axes.set_title(way, fontsize=8)
    figure.axes[1].set_ylabel("")
    return plots.legend_below(figure, figure.axes[0])


def _at_line(table: pd.DataFrame, values: pd.Series, pull: str) -> pd.DataFrame:
    """Values of the lines of a pull: a row a bandwidth, a column a seed."""
    wide = values.unstack("seed")
    widths = sorted(set(table.loc[table["pull"] == pull, "bandwidth"]))
    return wide.reindex([line_of(width, pull) for width in widths]).set_axis(widths, axis=0)


def travel_drawn(table: pd.DataFrame, seen: pd.DataFrame) -> Figure:
    """Travel and share of thresholds that moved, against eps."""
    drawn = {"travel": "median |log theta / start|", "moved": "moved a quarter window"}
    return _beside(table, seen, drawn)


def counts_drawn(table: pd.DataFrame, seen: pd.DataFrame) -> Figure:
    """Samples in a window, and share of windows with any, against eps; grey: the share if samples
    came independently."""
    drawn = {"count": "samples in a window of a batch", "hit": "windows with any"}
    figure = _beside(table, seen, drawn)
    for _, part in _centre(table, seen).groupby("pull"):
        widths = part.index.get_level_values("bandwidth")
        figure.axes[1].plot(widths, part["expected"], color="grey", linewidth=0.6)
    return figure


def _beside(table: pd.DataFrame, seen: pd.DataFrame, drawn: dict[str, str]) -> Figure:
    """Columns of `windows` against eps at the base rate and the middle coefficient."""
    means = _centre(table, seen)
    figure = plots.figure(6.8, 3.0, 1, len(drawn))
    for (column, title), axes in zip(drawn.items(), figure.axes, strict=True):
        for pull in means.index.unique("pull"):
            part = means.loc[pull]
            axes.plot(part.index, part[column], label=KINDS[pull], **look("batch" + pull))
        _widths(axes, title)
    return plots.legend_below(figure, figure.axes[0])


def _widths(axes: Axes, title: str) -> None:
    loglog(axes)
    axes.set(xlabel="eps", ylabel=title)
