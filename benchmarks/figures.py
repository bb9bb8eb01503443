"""Figures of the benchmarks, drawn from their tables alone."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from sae_bench import plots

SHOWN = (
    "library",
    "architecture",
    "d_sae",
    "encoder_products",
    "encoder_products_low",
    "encoder_products_high",
    "encoder_ms",
    "peak_mb",
    "l0",
    "fvu",
)
COLOURS: Mapping[str, str] = {
    "ours": "#D55E00",
    "ours_dense": "#E69F00",
    "dense": "#999999",
    "saelens": "#0072B2",
    "dictionary_learning": "#009E73",
    "sparsify": "#CC79A7",
}
AXES: Mapping[str, str] = {
    "l0": "L0 (wanted)",
    "batch": "batch (tokens)",
    "arms": "arms in lockstep",
}
"""Axis of the cost curve -> its label, where that is not its name."""

MEASURES: Mapping[str, tuple[str, str]] = {
    "encoder_products": ("encoder_products", "step / encoder product"),
    "peak_memory": ("peak_mb", "peak memory of a step (MB)"),
    "fvu": ("fvu", "FVU at equal steps"),
}
"""File name -> column and axis label."""


@mpl.rc_context(plots.STYLE)
def speed(table: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure a measure, one panel a width: architectures side by side, one bar a library;
    whiskers are the quartiles over timed steps."""
    written = []
    widths = sorted(table["d_sae"].unique())
    for name, (column, label) in MEASURES.items():
        drawn = plots.figure(6.8, 2.4 * len(widths), len(widths), 1)
        for width, axes in zip(widths, drawn.axes, strict=True):
            _bars(table[table["d_sae"] == width], column, axes)
            axes.set(ylabel=label, title=f"d_sae = {width:,}")
        _legend(drawn)
        written += plots.save(drawn, folder, name)
    return written


def _bars(table: pd.DataFrame, column: str, axes: Axes) -> None:
    names = list(dict.fromkeys(table["architecture"]))
    libraries = [library for library in COLOURS if library in set(table["library"])]
    pairs = set(zip(table["architecture"], table["library"], strict=True))
    thick = 0.8 / len(libraries)
    for library in libraries:
        rows = table[table["library"] == library].drop_duplicates("architecture", keep="last")
        place = [
            names.index(name)
            + thick * _offset(library, [x for x in libraries if (name, x) in pairs])
            for name in rows["architecture"]
        ]
        whiskers = None
        if f"{column}_low" in rows:
            low, high = rows[f"{column}_low"], rows[f"{column}_high"]
            whiskers = np.stack([rows[column] - low, high - rows[column]]).clip(min=0)
        axes.bar(
            place,
            rows[column],
            thick,
            yerr=whiskers,
            color=COLOURS[library],
            error_kw={"linewidth": 0.8},
            label=library,
        )
    labels = [name.replace(" + ", "\n+ ").replace("KDE", "\nKDE") for name in names]
    axes.set_xticks(range(len(names)), labels)


def _offset(library: str, there: list[str]) -> float:
    """Place of a bar in a group that is centred, in bars."""
    return there.index(library) - (len(there) - 1) / 2


def _legend(drawn: Figure) -> None:
    found: dict[str, Artist] = {}
    for axes in drawn.axes:
        found |= {
            name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    drawn.legend(found.values(), found.keys(), loc="outside lower center", ncols=5, fontsize=7)


@mpl.rc_context(plots.STYLE)
def curves(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Time of a step of one arm in milliseconds against each axis of the cost curve, one panel an
    axis; and the dense reference's time over ours, where above 1 our path pays."""
    axes_names = list(dict.fromkeys(table["axis"]))
    written = []
    for name, label in (("cost", "step of one arm (ms)"), ("pays", "dense / ours")):
        drawn = plots.figure(2.3 * len(axes_names), 2.6, 1, len(axes_names))
        for axis, axes in zip(axes_names, drawn.axes, strict=True):
            _curve(table[table["axis"] == axis], axis, axes, ratio=name == "pays")
            values = sorted(table.loc[table["axis"] == axis, axis].unique())
            axes.set(xscale="log", xlabel=AXES.get(axis, axis), ylabel=label)
            axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
            axes.xaxis.set_minor_formatter(NullFormatter())
            if name == "cost":
                axes.set(yscale="log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.grid(alpha=0.25, linewidth=0.5)
        _legend(drawn)
        written += plots.save(drawn, folder, f"curve_{name}")
    return written


def _curve(table: pd.DataFrame, axis: str, axes: Axes, ratio: bool) -> None:
    for architecture, part in table.groupby("architecture", sort=False):
        look = plots.looks([str(architecture)])[str(architecture)]
        times = part.assign(ms=part["step_ms"] / part["arms"]).pivot_table(
            index=axis, columns="library", values="ms", aggfunc="last"
        )
        if ratio and {"ours", "dense"} <= set(times):
            axes.plot(
                times.index, times["dense"] / times["ours"], **look._asdict(), label=architecture
            )
            axes.axhline(1, color="grey", linestyle="--", linewidth=0.6)
        if not ratio:
            for library, line in (("ours", "-"), ("dense", ":")):
                if library in times:
                    shown = {**look._asdict(), "linestyle": line, "markersize": 3}
                    axes.plot(
                        times.index, times[library], **shown, label=f"{architecture}, {library}"
                    )
