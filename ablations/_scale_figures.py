"""The figures of `scale`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._lines import CELLS, styled
from ablations._squares import SIDES
from sae_bench import bands, plots
from sae_bench.contrasts import Outcome


def frontiers(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """FVU and the share of L0 in frequent latents against L0, a column a part.

    Args:
        parts: the rows of each.
    """
    drawn = plots.figure(0.4 + 1.9 * len(parts), 3.8, 2, len(parts))
    grid = np.array(drawn.axes).reshape(2, len(parts))
    for column, (part, rows) in zip(grid.T, parts.items(), strict=True):
        for axes, y in zip(column, ("fvu", "l0_share_above_10pct"), strict=True):
            bands.bands(rows, axes, x="l0", y=y, by="cell", lines=styled(CELLS))
            axes.set_xlabel("" if axes is column[0] else "L0")
            if axes not in grid[:, 0]:
                axes.set_ylabel("")
        bands.logarithmic(column[0])
        column[0].set_title(part, fontsize=8)
    for row in grid:
        low, high = zip(*(axes.get_ylim() for axes in row), strict=True)
        for axes in row:
            axes.set_ylim(min(low), max(high))
    return plots.legend_below(drawn, grid[0, 0], columns=4)


def effects(found: pd.DataFrame, outcomes: Sequence[Outcome]) -> Figure:
    """Main effects on FVU and on the share of L0 in frequent latents, part by part.

    Args:
        found: columns of `contrasts.compare`.
        outcomes: these two.
    """
    drawn = plots.figure(6.8, 2.4, 1, len(outcomes))
    titles = ("100 x log FVU at matched L0", "share of L0 above 10%, points")
    names = {side: SIDES[side] for side in ("A", "B")}
    for outcome, title, axes in zip(outcomes, titles, drawn.axes, strict=True):
        rows = found[found["outcome"] == outcome.name]
        bands.effects(rows, axes, names=names, by="way", unit=100)
        axes.set_title(title, fontsize=8)
    return plots.legend_below(drawn, axes, columns=4, size=7)
