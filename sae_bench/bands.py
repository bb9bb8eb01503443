"""Figures of paired grids, drawn from tables alone: curves with bands over seeds, by themselves or
against one of them, labels at their ends, effects with intervals, firing frequencies at matched L0.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sae_bench.contrasts import common_range, interpolate, matched
from sae_bench.plots import LABELS, STYLE, Look, plain_numbers

COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#000000", "#CC79A7", "#009E73")
"""Okabe and Ito's colour-blind-safe set, in the order in which names take them."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DRAWN = 80
"""Places at which a curve is interpolated."""
ROOM = 0.062
"""Distance of two labels, as a share of the height of axes of 2.6 inches."""
TITLES = {"l0_share_above_10pct": "Share of L0 in latents above 10%"} | dict(LABELS)


def ordered(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name by its place, for lines that are no architectures (`plots.looks`)."""
    return {
        name: Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], "-")
        for index, name in enumerate(names)
    }


def _curves(rows: pd.DataFrame, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Places on the logarithmic x axis that all seeds have, and y there: one row a seed."""
    known = rows[(rows[x] > 0) & np.isfinite(rows[y])]
    seeds = [part for _, part in known.groupby("seed") if part[x].nunique() > 1]
    if not seeds:
        return np.empty(0), np.empty((0, 0))
    low = max(np.log(part[x].min()) for part in seeds)
    high = min(np.log(part[x].max()) for part in seeds)
    if low >= high:
        return np.empty(0), np.empty((0, 0))
    places = np.linspace(low, high, DRAWN)
    inside = places.clip(low + 1e-12, high - 1e-12)
    values = [
        interpolate(np.log(part[x].to_numpy(float)), part[y].to_numpy(float), inside)
        for part in seeds
    ]
    return np.exp(places), np.stack(values)


def band(
    axes: Axes,
    x: Float[np.ndarray, " n"],
    values: Float[np.ndarray, "seeds n"],
    look: Look,
    label: str | None = None,
    width: float = 1.2,
) -> None:
    """The mean over seeds against x, in a band that spans them."""
    axes.plot(x, values.mean(0), look.linestyle, color=look.color, linewidth=width, label=label)
    low, high = values.min(0), values.max(0)
    axes.fill_between(x, low, high, color=look.color, alpha=0.2, linewidth=0)


@mpl.rc_context(STYLE)
def bands(
    table: pd.DataFrame, axes: Axes, *, x: str, y: str, by: str, lines: Mapping[str, Look]
) -> Axes:
    """One curve a line in its look, the mean over seeds on a logarithmic x axis, in a band that
    spans the seeds; a marker is the mean of a setting.

    The seeds are interpolated inside their own ranges, and drawn where all of them have been
    measured. Rows whose x is not positive have no place there.
    """
    for name, look in lines.items():
        rows = table[(table[by] == name) & (table[x] > 0) & np.isfinite(table[y])]
        if rows.empty:
            continue
        places, values = _curves(rows, x, y)
        points = rows.groupby("setting")[[x, y]].mean().sort_values(x)
        if len(places):
            band(axes, places, values, look)
        axes.plot(points[x], points[y], look.marker, color=look.color, markersize=2.8, label=name)
    axes.set(xscale="log", xlabel=TITLES.get(x, x), ylabel=TITLES.get(y, y))
    plain_numbers(axes.xaxis)
    axes.grid(alpha=0.25, linewidth=0.5)
    return axes


@mpl.rc_context(STYLE)
def relative(
    table: pd.DataFrame, axes: Axes, *, x: str, y: str, by: str, lines: Mapping[str, Look], to: str
) -> Axes:
    """Each line against the line `to`: the change of y at equal x in percent, 100 (y / y_to - 1),
    on a logarithmic x axis; the mean over the seeds that both have, in a band that spans them. A
    marker stands at the mean log x of a setting of the line; 0 is marked.

    Curves are drawn where all of these seeds of both have been measured, log y interpolated in
    log x (`contrasts.matched`). Rows whose x or y is not positive have no logarithm.
    """
    rows = table[(table[x] > 0) & (table[y] > 0)]
    logs = rows.assign(**{column: np.log(rows[column]) for column in (x, y)})
    for name, look in lines.items():
        pair = logs[logs[by].isin((name, to))]
        pair = pair[pair.groupby("seed")[by].transform("nunique") == 2]
        low, high = common_range(pair, x, y, by, (name, to))
        if not low < high:
            continue
        places = np.linspace(low, high, DRAWN)
        values = matched(pair, x, y, list(places), by)
        changes = 100 * np.expm1((values.loc[name] - values.loc[to]).to_numpy())
        band(axes, np.exp(places), changes, look, name)
        marks = pair[pair[by] == name].groupby("setting")[x].mean()
        marks = marks[marks.between(low, high)].to_numpy()
        heights = np.interp(marks, places, changes.mean(0))
        axes.plot(np.exp(marks), heights, look.marker, color=look.color, markersize=2.8)
    axes.axhline(0, color="grey", linewidth=0.7)
    axes.set(xscale="log", xlabel=TITLES.get(x, x))
    plain_numbers(axes.xaxis)
    axes.grid(alpha=0.25, linewidth=0.5)
    return axes


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers; values that are not positive have no place on it."""
    axes.set_yscale("log", nonpositive="mask")
    plain_numbers(axes.yaxis)


@mpl.rc_context(STYLE)
def label_ends(axes: Axes, *, size: float = 6.5) -> None:
    """Writes the name of each curve beside its right end, outside the axes, in its colour; names
    that would overlap move apart and keep a thin line to their curve."""
    markers = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    if not markers:
        return
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    unit = axes.transAxes.inverted()
    ends = []
    for line in markers:
        points = np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float)
        points = points[np.isfinite(axes.transData.transform(points)).all(1)]
        if len(points):
            shown = axes.transData.transform(points)
            place = unit.transform(shown[np.argmax(shown[:, 0])])
            ends.append((float(place[1]), float(place[0]), line))
    ends.sort(key=lambda end: end[0])
    heights = _apart([min(max(end[0], 0), 1) for end in ends], ROOM)
    for height, (y, x, line) in zip(heights, ends, strict=True):
        axes.annotate(
            str(line.get_label()),
            xy=(x, y),
            xytext=(1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=line.get_color(),
            fontsize=size,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 0.4,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 2,
            },
        )


def _apart(places: Sequence[float], room: float) -> list[float]:
    """Rising places, moved as little as a few sweeps need to be `room` apart."""
    moved = np.array(places, dtype=float)
    for _ in range(200):
        gap = room - np.diff(moved)
        push = np.maximum(gap, 0) / 2
        moved[:-1] -= push
        moved[1:] += push
        if (gap <= 1e-6).all():
            break
    return [float(value) for value in moved]


@mpl.rc_context(STYLE)
def effects(
    table: pd.DataFrame, axes: Axes, *, names: Mapping[str, str], by: str, unit: float = 1.0
) -> Axes:
    """Effects with their intervals, one row an effect, one colour a kind of `by`; 0 is marked.

    Args:
        table: columns contrast, mean, low, high and `by`.
        axes: where to draw.
        names: contrasts to draw, top to bottom, and what they are called.
        by: column of the kinds that are drawn side by side.
        unit: factor on all numbers, 100 for percent.
    """
    kinds = list(dict.fromkeys(table[by]))
    for index, kind in enumerate(kinds):
        rows = table[table[by] == kind].set_index("contrast").reindex(list(names))
        shift = min(0.28, 0.8 / len(kinds)) * (index - (len(kinds) - 1) / 2)
        mean, low, high = (unit * rows[c].to_numpy(float) for c in ("mean", "low", "high"))
        ends = np.stack([mean - low, high - mean])
        axes.errorbar(
            mean,
            np.arange(len(names)) + shift,
            xerr=np.nan_to_num(ends.clip(min=0)) if np.isfinite(ends).any() else None,
            fmt=MARKERS[index],
            color=COLOURS[(0, 2, 4, 5, 6, 3, 1)[index % len(COLOURS)]],
            markersize=3.5,
            linewidth=0,
            elinewidth=1.2,
            capsize=2,
            label=kind,
        )
    axes.axvline(0, color="grey", linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)
    return axes


def matched_frequencies(
    rows: pd.DataFrame, l0: float
) -> tuple[Float[np.ndarray, " latents"], float]:
    """log10 of the firing frequencies that arms of one line and seed would have at one L0, most
    frequent first: that of the n-th most frequent latent, interpolated linearly in log L0 between
    the two arms next to it. Ranks at which one of them has latents that never fired are left out.

    Args:
        rows: columns l0 (positive) and frequency (of every latent).
        l0: where; outside the range of the arms its nearer end is taken.

    Returns:
        The frequencies, and their L0.
    """
    known = rows.sort_values("l0")
    places = np.log(known["l0"].to_numpy(float))
    at = float(np.clip(math.log(l0), places[0], places[-1]))
    above = int(np.searchsorted(places, at))
    below = max(above - 1, 0)
    ranked = [np.sort(np.asarray(known["frequency"].iloc[n]))[::-1] for n in (below, above)]
    fired = min(np.count_nonzero(each) for each in ranked)
    low, high = (np.log10(each[:fired].astype(float)) for each in ranked)
    weight = (at - places[below]) / (places[above] - places[below]) if above else 0.0
    return (1 - weight) * low + weight * high, math.exp(at)


@mpl.rc_context(STYLE)
def matched_histogram(
    table: pd.DataFrame,
    frequencies: pd.DataFrame,
    axes: Axes,
    *,
    by: str,
    lines: Mapping[str, Look],
    l0: float,
    bins: int = 32,
) -> Axes:
    """Histograms of log10 firing frequency at one L0 (`matched_frequencies`), one outline a line,
    counts averaged over seeds if there are several; a line that does not reach it is labelled with
    its own. Frequencies below 1e-4 are in the first bin; dashed lines mark 1% and 10%."""
    edges = np.linspace(-4, 0, bins + 1)
    rates = table[table["l0"] > 0].merge(frequencies, on=["arm", "eval_set"])
    shown = "latents (mean over seeds)" if table["seed"].nunique() > 1 else "latents"
    for name, look in lines.items():
        seeds = rates[rates[by] == name].groupby(["seed", "eval_set"], dropna=False)
        found = [matched_frequencies(rows, l0) for _, rows in seeds]
        if found:
            own = np.mean([reached for _, reached in found])
            axes.stairs(
                np.mean([np.histogram(f.clip(-4, 0), edges)[0] for f, _ in found], axis=0),
                edges,
                color=look.color,
                linewidth=1.1,
                label=name if np.isclose(own, l0) else f"{name}, L0 {own:.0f}",
            )
    for rate in (-2, -1):
        axes.axvline(rate, color="grey", linestyle="--", linewidth=0.6)
    axes.set(yscale="log", xlabel=f"log10 firing frequency at L0 {l0:g}", ylabel=shown)
    axes.set_ylim(bottom=0.5)
    return axes
