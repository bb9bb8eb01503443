"""Draws the figures of the JumpReLU paper from points (`_paper_figures`): the paper's, a run's, or
the one over the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ablations._paper_figures import (
    BARS,
    SITES,
    Measure,
    PaperFigure,
    Row,
    Series,
)
from sae_bench import bands, plots

MATCHED = 70
"""L0 of the histograms of figure 14."""
TINY = 1e-9
"""Where a bar ends that reaches 0 on a logarithmic axis."""


@dataclass(frozen=True)
class Manner:
    """How the curves of one source are drawn.

    Args:
        paper: whether curves have the paper's names, or those of a run.
        note: what their names in the legend end with.
        behind: whether they are the paper's beside a run's: dashed, on axes of their own where
            the measure hangs on the width.
        alpha, width, size: line, and markers.
    """

    paper: bool
    note: str = ""
    behind: bool = False
    alpha: float = 1.0
    width: float = 1.2
    size: float = 3.5

    def label(self, series: Series) -> str:
        """A curve's name in the legend."""
        return (series.paper if self.paper else series.name) + self.note


RUN = Manner(paper=False)
PAPER = Manner(paper=True)
BEHIND = Manner(paper=True, note=", paper", behind=True, alpha=0.45, width=0.9, size=1.8)


def curves(points: pd.DataFrame, axes: Axes, figure: PaperFigure, manner: Manner) -> Axes:
    """The curves of one panel, in order of x, with a bar where a point has an interval (cut at the
    lower edge); on a logarithmic axis without values that are not positive.

    Args:
        points: those of this panel.
        axes: where to draw.
        figure: what they are of.
        manner: how.
    """
    for series in figure.series:
        curve = points[points["series"] == series.key].sort_values("x")
        if len(curve):
            axes.plot(
                curve["x"],
                curve["y"],
                color=series.look.color,
                marker=series.look.marker,
                linestyle="--" if manner.behind else "-",
                alpha=manner.alpha,
                linewidth=manner.width,
                markersize=manner.size,
                label=manner.label(series),
            )
            if len(known := curve.dropna(subset=BARS)):
                bars(known, axes, series.look.color)
    return axes


def bars(points: pd.DataFrame, axes: Axes, colour: str) -> None:
    """Intervals as thin lines, which do not stretch the axes."""
    ends = points[["x", *BARS]].itertuples(index=False)
    lines = [[(x, max(low, TINY)), (x, high)] for x, low, high in ends]
    shown = LineCollection(lines, colors=colour, linewidths=0.7, alpha=0.5)
    axes.add_collection(shown, autolim=False)


def panel(
    sources: Mapping[Manner, pd.DataFrame], axes: Axes, figure: PaperFigure, row: Row, place: int
) -> Axes:
    """One panel with its axes, the sources one over the other; what hangs on the width has the
    paper's values on an axis of their own, at the right."""
    scale(axes, "x", figure.x)
    scale(axes, "y", row.y)
    for manner, points in sources.items():
        here = (points["figure"] == figure.number) & (points["measure"] == row.y.column)
        here &= (points["site"] == row.site) & (points["place"] == place)
        apart = manner.behind and not row.y.width_free
        drawn = curves(points[here], _right(axes) if apart else axes, figure, manner)
        if not row.y.width_free:  # zeros of both axes stand side by side
            drawn.update_datalim([(0, 0)], updatex=False)
            drawn.autoscale_view()
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    return axes


def _right(axes: Axes) -> Axes:
    twin = axes.twinx()
    twin.set_ylabel("paper", fontsize=6, color="grey")
    twin.tick_params(labelsize=6, colors="grey")
    twin.spines["right"].set(visible=True, color="grey")
    return twin


def scale(axes: Axes, which: str, measure: Measure) -> None:
    """Makes the axis `x` or `y` that of a measure."""
    if measure.ticks:
        getattr(axes, f"set_{which}scale")("log", nonpositive="mask")
        plots.plain_numbers(getattr(axes, f"{which}axis"), measure.ticks)


@mpl.rc_context(plots.STYLE)
def draw(figure: PaperFigure, sources: Mapping[Manner, pd.DataFrame]) -> Figure:
    """The grid of a figure, with one legend below; panels of a column share x, of a row y.

    Args:
        figure: which.
        sources: points by how they are drawn, the first behind.
    """
    rows, columns = len(figure.rows), len(figure.places)
    size = (6.8, 1.1 + 1.7 * rows) if columns > 1 else (3.4, 3.2)
    drawn = plots.figure(*size, rows, columns, shared=True)
    cells = [(row, place) for row in figure.rows for place in figure.places]
    panels = tuple(drawn.axes)
    for (row, place), axes in zip(cells, panels, strict=True):
        panel(sources, axes, figure, row, place)
    for row, axes in zip(figure.rows, panels[::columns], strict=True):
        axes.set_ylabel(f"{SITES[row.site]}\n{row.y.label}")
    for axes in panels[-columns:]:
        axes.set_xlabel(figure.x.label)
    for place, axes in zip(figure.places, panels, strict=False):
        axes.set_title(_layer(sources, figure, place), fontsize=8)
    _legend(drawn, columns)
    return drawn


def _layer(sources: Mapping[Manner, pd.DataFrame], figure: PaperFigure, place: int) -> str:
    """`Layer 6 (paper: 9)`."""
    shown: list[str] = []
    for manner, points in sources.items():
        here = points[(points["figure"] == figure.number) & (points["place"] == place)]
        for layer in here["layer"].unique()[:1]:
            shown.insert(0, f"(paper: {layer})" if manner.behind else f"layer {layer}")
    return " ".join(shown).capitalize()


def _legend(drawn: Figure, columns: int) -> None:
    """Each name once, below."""
    known: dict[str, Artist] = {}
    for axes in drawn.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    drawn.legend(
        known.values(),
        known.keys(),
        loc="outside lower center",
        ncols=4 if columns > 1 else 2,
        fontsize=7,
        frameon=False,
    )


@mpl.rc_context(plots.STYLE)
def histograms(rows: pd.DataFrame, frequencies: pd.DataFrame, series: Sequence[Series]) -> Figure:
    """Figure 14: histograms of log10 firing frequency on the residual stream at L0 = 70, log
    counts; a panel a layer, latents that never fired left out.

    Args:
        rows: of a run at residual sites, at least one (`with_series`).
        frequencies: of the run.
        series: those of the rows.
    """
    places = sorted(rows["place"].unique())
    looks = {each.name: each.look for each in series}
    drawn = plots.figure(0.5 + 2.1 * len(places), 2.6, 1, len(places), shared=True)
    for place, axes in zip(places, drawn.axes, strict=True):
        here = rows[rows["place"] == place]
        bands.matched_histogram(here, frequencies, axes, by="curve", lines=looks, l0=MATCHED)
        axes.set_title(f"Layer {here['layer'].iloc[0]}", fontsize=8)
        axes.legend(fontsize=6, loc="upper left", frameon=False)
        axes.label_outer()
    first, *_ = drawn.axes
    first.set_ylim(top=30 * first.get_ylim()[1])
    return drawn
