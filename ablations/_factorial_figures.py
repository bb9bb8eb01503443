"""Figures of the factorial: frontiers, frequent latents, effects."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from ablations._lines import CELLS, styled
from sae_bench import bands, plots


def frontiers(table: pd.DataFrame, y: str, lines: Iterable[str]) -> Figure:
    """A column of the table against L0, a curve a line, bands over seeds.

    Args:
        table: what `_lines.prepared` gives.
        y: column.
        lines: to draw.
    """
    drawn = plots.figure(4.6, 2.8)
    (axes,) = drawn.axes
    bands.bands(table, axes, x="l0", y=y, by="cell", lines=styled(lines))
    bands.logarithmic(axes)
    bands.label_ends(axes)
    return drawn


def frequent(table: pd.DataFrame, known: pd.DataFrame) -> Figure:
    """Share of L0 in latents above 10%, against L0 and against delta LM loss (nats).

    Args:
        table: what `_lines.prepared` gives.
        known: its rows whose delta LM loss is above the noise.
    """
    drawn = plots.figure(6.8, 2.6, 1, 2)
    for x, rows, axes in zip(("l0", "delta_lm_loss"), (table, known), drawn.axes, strict=True):
        bands.bands(rows, axes, x=x, y="l0_share_above_10pct", by="cell", lines=styled(CELLS))
    drawn.axes[1].invert_xaxis()
    drawn.axes[1].set_ylabel("")
    bands.label_ends(drawn.axes[1])
    return drawn


def histograms(table: pd.DataFrame, frequencies: pd.DataFrame) -> Figure:
    """Firing frequencies of the cells at L0 32 and 128.

    Args:
        table: what `_lines.prepared` gives.
        frequencies: of the run.
    """
    drawn = plots.figure(6.8, 2.6, 1, 2)
    for l0, axes in zip((32, 128), drawn.axes, strict=True):
        bands.matched_histogram(table, frequencies, axes, by="cell", lines=styled(CELLS), l0=l0)
        axes.set_ylim(top=30 * axes.get_ylim()[1])
        axes.legend(fontsize=6, loc="upper left", frameon=False)
    return drawn


def effects(found: pd.DataFrame, shown: Mapping[str, str], names: Mapping[str, str]) -> Figure:
    """Effects with their intervals, a panel an outcome.

    Args:
        found: what `contrasts.compare` gives.
        shown: four outcomes and their titles.
        names: contrasts, and what they are called.
    """
    drawn = plots.figure(6.8, 3.6, 2, 2)
    for (name, title), axes in zip(shown.items(), drawn.axes, strict=True):
        rows = found[found["outcome"] == name]
        bands.effects(rows, axes, names=names, by="way")
        axes.set_title(title, fontsize=8)
    return plots.legend_below(drawn, axes, size=7)
