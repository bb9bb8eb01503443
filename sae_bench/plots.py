"""Figures drawn from tables alone: each function takes a table and axes, and returns the axes."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from sae_bench.files import write_atomically

COLOURS: Mapping[str, str] = {
    "ReLU": "#0072B2",
    "TopK": "#E69F00",
    "Gated": "#009E73",
    "JumpReLU": "#D55E00",
    "BatchTopK": "#CC79A7",
    "Matryoshka": "#56B4E9",
    "GatedRIL1": "#00543D",
}
"""One colour an architecture, the same in every figure (Okabe and Ito's colour-blind-safe set and a
dark green)."""

SPARE = ("#332288", "#88CCEE", "#117733", "#999933", "#CC6677", "#882255", "#000000", "#999999")
MARKERS: Mapping[str, str] = {
    "ReLU": "o",
    "TopK": "s",
    "Gated": "^",
    "JumpReLU": "D",
    "BatchTopK": "P",
    "Matryoshka": "X",
    "GatedRIL1": "v",
}
LINES = ("-", "--", ":", "-.")
SPARE_MARKERS = ("o", "s", "^", "D", "P", "X", "v", "<", ">", "p", "*", "h", "d")
FEW = 6
"""Entries of a legend that find room inside axes."""

LABELS: Mapping[str, str] = {
    "l0": "L0 (mean latents on per token)",
    "fvu": "FVU",
    "delta_lm_loss": "Delta LM loss (nats)",
    "relative_noise": "noise / signal of a step",
    "variance": "variance of a step",
    "integrated_variance": "integrated variance",
}
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 150,
    "svg.hashsalt": "sae-bench",
}


class Look(NamedTuple):
    """How a series is drawn."""

    color: str
    marker: str
    linestyle: str


def looks(series: Sequence[str]) -> dict[str, Look]:
    """A look for each name: its own, or a spare one in order of appearance. No two of several
    hundred names are alike: after the spare colours come other kinds of line, and other markers."""
    names = list(dict.fromkeys(series))
    others = [name for name in names if name not in COLOURS]
    spare = {
        name: Look(
            SPARE[index % len(SPARE)],
            SPARE_MARKERS[index // len(SPARE) % len(SPARE_MARKERS)],
            LINES[index // len(SPARE) % len(LINES)],
        )
        for index, name in enumerate(others)
    }
    return {
        name: Look(COLOURS[name], MARKERS[name], "-") if name in COLOURS else spare[name]
        for name in names
    }


@mpl.rc_context(STYLE)
def legend(drawn: Figure, axes: Axes) -> None:
    """The legend of the figure's only axes: inside them, or beside them if it is long. The figure
    then grows by what the legend takes."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= FEW:
        axes.legend(handles, labels)
        return
    width, height = drawn.get_size_inches()
    drawn.set_size_inches(
        width + 0.5 + 0.05 * max(len(label) for label in labels),
        max(height, 0.5 + 0.13 * len(labels)),
    )
    drawn.legend(handles, labels, loc="outside right center", fontsize=6)


def legend_below(drawn: Figure, axes: Axes, columns: int = 2, size: float = 6) -> Figure:
    """The figure, with the legend of one of its axes below."""
    handles, labels = axes.get_legend_handles_labels()
    place = "outside lower center"
    drawn.legend(handles, labels, loc=place, ncols=columns, fontsize=size, frameon=False)
    return drawn


@mpl.rc_context(STYLE)
def figure(
    width: float = 3.4,
    height: float = 2.8,
    rows: int = 1,
    columns: int = 1,
    *,
    shared: bool = False,
) -> Figure:
    """An empty figure of `rows` x `columns` axes, in inches; 3.4 is one column of a paper. Where
    they are `shared`, those of a column have one x axis and those of a row one y axis."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    drawn.subplots(
        rows, columns, sharex="col" if shared else False, sharey="row" if shared else False
    )
    return drawn


def plain_numbers(axis: Axis, ticks: Sequence[float] = (1, 2, 5)) -> None:
    """Labels a logarithmic axis at `ticks` times powers of ten."""
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


@mpl.rc_context(STYLE)
def save(drawn: Figure, folder: Path, name: str) -> list[Path]:
    """Writes PNG and SVG (the same bytes for the same figure), laid out once: that takes as long as
    drawing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    layout = drawn.get_layout_engine()
    for path in paths:
        _write(drawn, path)
        drawn.set_layout_engine("none")
    drawn.set_layout_engine(layout)
    return paths


def _write(drawn: Figure, path: Path) -> None:
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    write_atomically(
        path, lambda partial: drawn.savefig(partial, format=kind, dpi=200, metadata=metadata)
    )


@mpl.rc_context(STYLE)
def frontier(
    table: pd.DataFrame, axes: Axes, *, y: str = "fvu", x: str = "l0", by: str = "series"
) -> Axes:
    """A Pareto frontier on log-log axes: one line a series, one marker a setting.

    A marker is the mean over seeds; its bar spans the seeds and the 95% intervals of the
    evaluation where the table has them (columns `<y>_low`, `<y>_high`); the axis shows all
    markers, and bars as far as it reaches. Values that have no place
    on a logarithmic axis are left out and counted in the corner.
    """
    measured = table.dropna(subset=[x, y])
    shown = measured[(measured[y] > 0) & (measured[x] > 0)]
    palette = looks(list(table[by].astype(str)))
    for name, rows in shown.groupby(shown[by].astype(str), sort=False):
        low = rows[f"{y}_low"] if f"{y}_low" in rows else rows[y]
        high = rows[f"{y}_high"] if f"{y}_high" in rows else rows[y]
        points = (
            rows.assign(low=low, high=high)
            .groupby(["setting", "eval_set"], sort=False)
            .agg(x=(x, "mean"), y=(y, "mean"), low=("low", "min"), high=("high", "max"))
            .sort_values("x")
        )
        bars = np.stack([points["y"] - points["low"], points["high"] - points["y"]]).clip(min=0)
        axes.errorbar(
            points["x"],
            points["y"],
            yerr=np.minimum(bars, [points["y"] * 0.999, np.full(len(points), np.inf)]),
            **palette[name]._asdict(),
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=1.5,
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel=LABELS.get(x, x), ylabel=LABELS.get(y, y))
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    axes.grid(alpha=0.25, linewidth=0.5)
    if len(shown):
        axes.set_ylim(bottom=max(axes.get_ylim()[0], shown[y].min() / 2))
    if len(measured) > len(shown):
        note = f"not positive, not shown: {len(measured) - len(shown)}"
        axes.text(0.98, 0.98, note, transform=axes.transAxes, ha="right", va="top")
    return axes


@mpl.rc_context(STYLE)
def frequency_histogram(
    table: pd.DataFrame,
    frequencies: pd.DataFrame,
    axes: Axes,
    *,
    bins: int = 40,
    color: str | None = None,
) -> Axes:
    """Histograms of log10 firing frequency, one outline a row of `table` (dark: large L0), in
    `color` or the series' own.

    Counts of latents on a logarithmic axis; latents that never fired have no logarithm and are left
    out, those below 1e-5 are in the first bin. Dashed lines mark 1% and 10%.
    """
    rows = table.merge(frequencies, on=["arm", "eval_set"]).sort_values("l0")
    edges = np.linspace(-5, 0, bins + 1)
    for shade, (_, row) in zip(np.linspace(1, 0.3, len(rows))[::-1], rows.iterrows(), strict=True):
        fired = np.asarray(row["frequency"])
        counts, _ = np.histogram(np.log10(fired[fired > 0]).clip(edges[0], edges[-1]), edges)
        axes.stairs(
            counts,
            edges,
            color=color or looks([row["series"]])[row["series"]].color,
            alpha=shade,
            linewidth=1.1,
            label=f"L0 {row['l0']:.0f}, dead {row['dead']:.0%}",
        )
    for rate in (-2, -1):
        axes.axvline(rate, color="grey", linestyle="--", linewidth=0.6)
    axes.set(yscale="log", xlabel="log10 firing frequency", ylabel="latents")
    axes.set_ylim(bottom=0.7)
    return axes


@mpl.rc_context(STYLE)
def noise(table: pd.DataFrame, axes: Axes, *, y: str = "relative_noise") -> Axes:
    """A column of a table of `gradient_noise` against firing frequency on log-log axes: one line
    for each estimator and batch size, one marker a bucket; dashed where the coefficient is not
    straight-through. Buckets that never fired, and values that are not positive, are left out.
    """
    smallest = table["batch_size"].min()
    groups = table.groupby(["estimator", "batch_size"], sort=False)
    palette = mpl.color_sequences["tab20"]
    for index, ((estimator, batch_size), rows) in enumerate(groups):
        shown = rows[(rows["frequency"] > 0) & (rows[y] > 0)].sort_values("frequency")
        axes.plot(
            shown["frequency"],
            shown[y],
            color=palette[index % len(palette)],
            linestyle="-" if rows["coefficient"].iloc[0] == "StraightThrough" else "--",
            marker="o",
            markersize=3,
            linewidth=1.1,
            label=estimator if batch_size == smallest else f"{estimator}, batch {batch_size}",
        )
    axes.set(xscale="log", yscale="log", xlabel="firing frequency", ylabel=LABELS.get(y, y))
    axes.grid(alpha=0.25, linewidth=0.5)
    return axes


@mpl.rc_context(STYLE)
def noise_panels(table: pd.DataFrame) -> Figure:
    """Noise to signal, variance of a step and integrated variance of a table of `gradient_noise`,
    side by side, with one legend below."""
    columns = ("relative_noise", "variance", "integrated_variance")
    drawn = figure(9.0, 4.2, 1, len(columns))
    for y, axes in zip(columns, drawn.axes, strict=True):
        noise(table, axes, y=y)
    return legend_below(drawn, axes)


@mpl.rc_context(STYLE)
def comparison(table: pd.DataFrame, frequencies: pd.DataFrame) -> dict[str, Figure]:
    """The standard figures of a run: FVU and delta LM loss against L0, and firing-frequency
    histograms with one panel a series."""
    drawn = {}
    for name in ("fvu", "delta_lm_loss"):
        if table[name].notna().any():
            drawn[f"{name}_vs_l0"] = figure()
            axes = frontier(table, drawn[f"{name}_vs_l0"].axes[0], y=name)
            legend(drawn[f"{name}_vs_l0"], axes)
    trained = table.dropna(subset=["l0"])
    series = list(dict.fromkeys(trained["series"]))
    palette = looks(list(table["series"]))
    if series:
        rows = -(-len(series) // 2)
        histograms = figure(6.8, 2.2 * rows, rows, 2)
        for axes in histograms.axes[len(series) :]:
            axes.remove()
        for name, axes in zip(series, histograms.axes, strict=False):
            part = trained[trained["series"] == name]
            frequency_histogram(part, frequencies, axes, color=palette[name].color)
            axes.set_title(textwrap.fill(name, 36))
            axes.legend(fontsize=6, loc="upper left")
        top = max(axes.get_ylim()[1] for axes in histograms.axes)
        for axes in histograms.axes:
            axes.set_ylim(0.7, top)
        drawn["frequency_histograms"] = histograms
    return drawn
