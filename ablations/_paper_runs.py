"""The figures of a run over those of the JumpReLU paper, with curves that the paper has none of:
released SAEs, and other bandwidths."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ablations._paper_figures import (
    FIGURES,
    FIVE,
    JUMP,
    L0,
    MIDDLE,
    OWN,
    PLACES,
    THETA,
    PaperFigure,
    Series,
    paper_points,
    placed,
    points_of,
    windowed,
    with_series,
)
from ablations._paper_plots import BEHIND, RUN, draw, histograms
from sae_bench.plots import COLOURS, SPARE, SPARE_MARKERS, Look
from sae_bench.results import Results
from sae_bench.store import RELEASED

FURTHER_MARKERS = SPARE_MARKERS[len(COLOURS) :]
"""Those that no architecture has."""


def whole(results: Results) -> pd.DataFrame:
    """The run's table with the columns that further tables have of each arm."""
    table = results.table
    for further in results.further.values():
        keys = [key for key in ("part", "arm", "eval_set") if key in further and key in table]
        if "arm" in keys:
            table = table.merge(further, on=keys, how="left")
    return table


def released_series(table: pd.DataFrame) -> tuple[Series, ...]:
    """A curve for each name that released SAEs of a run have, in the colour of their architecture;
    where it has several at a site, the others in spare colours.

    Args:
        table: columns status, series, architecture, site.
    """
    rows = table[table["status"] == RELEASED].drop_duplicates(["series", "site"])
    rows = rows.sort_values("series")
    others = set(rows.loc[rows.duplicated(["architecture", "site"]), "series"])
    names = rows.groupby("series")["architecture"].first()
    found = []
    for index, (name, kind) in enumerate(names.items()):
        spare = SPARE[index % len(SPARE)]
        colour = spare if name in others else COLOURS.get(kind, spare)
        look = Look(colour, FURTHER_MARKERS[index % len(FURTHER_MARKERS)], "-")
        found.append(Series("", str(name), look, line=str(name)))
    return tuple(found)


def bandwidths(table: pd.DataFrame) -> Iterator[PaperFigure]:
    """The figure `bandwidth`, if the run has more than one: reconstruction loss against L0 at the
    middle residual site, a curve an eps of the rectangle: first the one of all other figures, as it
    is drawn there, then from dark (narrow) to light.

    Args:
        table: as `points_of`.

    Raises:
        InputError: as `placed`.
    """
    rows = placed(table)
    rows = rows[(rows["line"] == THETA) & (rows["kind"] == MIDDLE[0].site)]
    chosen = _widths(JUMP.rows(rows))
    swept = sorted(_widths(rows), key=lambda eps: (eps not in chosen, float(eps)))
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(swept)))
    looks = {
        eps: OWN["JumpReLU"] if eps in chosen else Look(to_hex(shade), marker, "-")
        for eps, shade, marker in zip(swept, shades, cycle(SPARE_MARKERS), strict=False)
    }
    if len(swept) > 1:
        series = tuple(
            Series("", f"eps = {eps}", look, THETA, windowed("Rectangle", re.escape(eps)))
            for eps, look in looks.items()
        )
        yield PaperFigure(0, L0, MIDDLE, series, places=(1,), title="bandwidth")


def _widths(rows: pd.DataFrame) -> set[str]:
    """eps of the rectangles among kernels."""
    rectangle = windowed("Rectangle", "([^()]+)")["kernel"]
    return set(rows["kernel"].astype(str).str.extract(rectangle)[0].dropna())


def figures_of_run(results: Results) -> dict[str, Figure]:
    """Every figure that the run has points of, over the paper's, and firing frequencies. Released
    SAEs are in those that compare architectures.

    Raises:
        InputError: as `placed`.
    """
    table, paper = whole(results), paper_points()
    released = released_series(table)
    shown = [
        replace(each, series=(*each.series, *released)) if each.places == PLACES else each
        for each in FIGURES
    ]
    shown += bandwidths(table)
    own = points_of(table, shown)
    drawn = {
        each.name: draw(each, {BEHIND: paper, RUN: own})
        for each in shown
        if (own["figure"] == each.number).any()
    }
    compared = (*FIVE, *released)
    rows = with_series(table, compared)
    if len(rows := rows[rows["kind"] == "resid"]):
        drawn["figure_14"] = histograms(rows, results.frequencies, compared)
    return drawn
