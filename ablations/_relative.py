"""Curves of FVU that all but coincide, drawn against one of them."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from sae_bench import bands, plots

RELATIVE = (
    "Change in percent at equal L0, both curves interpolated between their settings, where all "
    "seeds of both have been measured. Curves are means over paired seeds, bands span them, "
    "markers stand at the (geometric) mean L0 of a setting; between them curves hang on the "
    "interpolation, which errs by some tenths of a percent."
)
"""Caption."""


def relative_fvu(
    panels: Mapping[str, pd.DataFrame], by: str, names: Iterable[str], to: str
) -> Figure:
    """FVU against that of one line at equal L0, a curve a line: see `bands.relative`.

    Args:
        panels: the rows of each panel, by its title; all have one y axis.
        by: column that names the lines.
        names: the lines, which take their looks in this order; those that are there are drawn.
        to: the line that others are held against, one of them.
    """
    looks = {name: look for name, look in bands.ordered(names).items() if name != to}
    figure = plots.figure(6.8, 2.8, 1, len(panels), shared=True)
    for (title, rows), axes in zip(panels.items(), figure.axes, strict=True):
        bands.relative(rows, axes, x="l0", y="fvu", by=by, lines=looks, to=to)
        axes.set_title(title, fontsize=8)
    for axes in figure.axes:  # once all have their places on the y axis
        bands.label_ends(axes)
    figure.axes[0].set_ylabel(f"FVU against {to} (%)")
    return figure
