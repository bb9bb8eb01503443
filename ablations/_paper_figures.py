"""The quantitative figures of the JumpReLU paper (arXiv 2407.14435): panels, axes, series, points.

A figure is a grid of panels: a row is a site and what is measured there, a column one of three
layers, from early to late. What is drawn in it is one long table of points, whether they come from
the paper (`paper_points`) or from a run (`points_of`):

    figure, site, place (0, 1, 2: the column), layer, measure, series (the paper's name of it), x,
    y, low, high

y in the figure's units: shares of latents in percent, losses in nats, reconstruction loss in units
of E||x||^2; low and high are the ends of its 95% interval over documents, where a run has one. The
paper's log-log axes are those of figures 2, 10 and 11; elsewhere L0, FVU and reconstruction loss
are logarithmic here, shares and r_L0 linear.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ablations._lines import cell
from sae_bench.contrasts import interpolate
from sae_bench.errors import InputError
from sae_bench.plots import SPARE, Look, looks
from sae_bench.store import RELEASED

CURVES = Path(__file__).with_name("_paper_curves.csv")
"""The paper's points; its head states source and licence."""
SITES: Mapping[str, str] = {"resid": "Residual", "mlp": "MLP output", "attn": "Attention"}
KINDS: Mapping[str, str] = {"resid_post": "resid", "mlp_out": "mlp", "attn_z": "attn"}
"""Last part of a site's name -> the paper's site."""
PLACES = (0, 1, 2)
BARS = ["low", "high"]
COLUMNS = ["figure", "site", "place", "layer", "measure", "series", "x", "y", *BARS]


@dataclass(frozen=True)
class Measure:
    """What an axis shows.

    Args:
        column: of a run's table.
        label: of the axis.
        factor: from the column to the axis.
        ticks: of a logarithmic axis, times powers of ten; none: it is linear.
        width_free: whether dictionaries of different width can be read off one axis.
    """

    column: str
    label: str
    factor: float = 1.0
    ticks: tuple[float, ...] = ()
    width_free: bool = True


L0 = Measure("l0", "L0", ticks=(1, 2, 5))
LOSS = Measure("delta_lm_loss", "Delta LM loss (nats)")
LOG_LOSS = replace(LOSS, ticks=(1, 2, 5))
FVU = Measure("fvu", "FVU", ticks=(1, 2, 3, 5))
RECONSTRUCTION = Measure("recon_loss", "Reconstruction loss", ticks=(1, 1.5, 2, 3, 5, 8))
ABOVE_10 = Measure("above_10pct", "Latents above 10% (%)", factor=100, width_free=False)
ABOVE_1 = Measure("above_1pct", "Latents above 1% (%)", factor=100, width_free=False)
DEAD = Measure("dead", "Dead latents (%)", factor=100)
UNIFORMITY = Measure("r_l0", "$r_{L0}$")

MEASURED: Mapping[str, Measure] = {
    "delta_lm_loss": LOSS,
    "fvu": FVU,
    "recon_loss": RECONSTRUCTION,
    "pct_features_gt10pct": ABOVE_10,
    "pct_features_gt1pct": ABOVE_1,
    "dead_pct": DEAD,
    "uniformity_rL0": UNIFORMITY,
}
"""y_name of the paper's points -> what it is."""


@dataclass(frozen=True)
class Series:
    """A curve, in the paper and in a run.

    Args:
        paper: its name in the paper; "": the paper has none.
        name: that of a run's.
        look: how it is drawn: an architecture's own colour is that of all other figures.
        line: the line (`placed`) that a run's arms belong to; "": none does.
        where: patterns that further columns of these arms must show.
    """

    paper: str
    name: str
    look: Look
    line: str = ""
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name among points."""
        return self.paper or self.name

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Those of the rows that `placed` gives that belong to it."""
        found = table[table["line"] == self.line]
        for column, pattern in self.where.items():
            texts = found[column].astype(str) if column in found else pd.Series("", found.index)
            found = found[texts.str.contains(pattern)]
        return found


def _spare(index: int, marker: str = "o") -> Look:
    return Look(SPARE[index], marker, "-")


def windowed(kernel: str, eps: str = "[^()]+") -> Mapping[str, str]:
    """Which rows have this kernel.

    Args:
        kernel, eps: patterns of its name and of its bandwidth.
    """
    return {"kernel": rf"^BatchKDE\({kernel}\({eps}\)\)$"}


VARIED = "variants"
"""The part of a run whose rectangles are those of other bandwidths than the one that was chosen."""
CHOSEN = {**windowed("Rectangle"), "part": rf"^(?!{VARIED}$)"}

OWN = looks(["ReLU", "Gated", "GatedRIL1", "JumpReLU", "TopK"])
THETA = "JumpReLU + L0 (theta)"
TARGETED = "JumpReLU + TargetL0 (theta)"
WITH_AUX, WITHOUT_AUX = {"aux": r"AuxK\(\d+, (?!0,)"}, {"aux": r"AuxK\(\d+, 0,"}

GATED = Series("Gated (Original)", "Gated", OWN["Gated"], "Gated")
RI_L1 = Series("Gated (RI-L1)", "Gated RI-L1", OWN["GatedRIL1"], "Gated RI-L1")
JUMP = Series("JumpReLU", "JumpReLU", OWN["JumpReLU"], THETA, CHOSEN)
TOPK = Series("TopK (AuxK)", "TopK + AuxK", OWN["TopK"], "TopK", WITH_AUX)
FOUR = (GATED, RI_L1, JUMP, TOPK)
RELU = Series("", "ReLU + L1", OWN["ReLU"], "ReLU + L1")
"""Mentioned in the paper, without a curve."""
FIVE = (*FOUR, RELU)


@dataclass(frozen=True)
class Row:
    """A row of panels: a site, and what is measured there."""

    site: str
    y: Measure


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper; see the module's docstring.

    Args:
        number: in the paper; 0: the paper does not show it.
        x: the horizontal axis.
        rows: of panels, from above.
        series: its curves; with one panel, the first is what the others are held against.
        places: its columns.
        title: what it is called in place of its number.
    """

    number: int
    x: Measure
    rows: tuple[Row, ...]
    series: tuple[Series, ...] = FIVE
    places: tuple[int, ...] = PLACES
    title: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        return self.title or f"figure_{self.number:02d}"


MIDDLE = (Row("resid", RECONSTRUCTION),)
FIGURES = (
    PaperFigure(2, L0, (Row("resid", LOG_LOSS),)),
    PaperFigure(5, LOSS, (Row("resid", ABOVE_10), Row("resid", ABOVE_1))),
    PaperFigure(
        8,
        L0,
        MIDDLE,
        (
            Series("TopK", "TopK", _spare(0), "TopK", WITHOUT_AUX),
            Series("TopK (approx)", "TopK (approx)", _spare(4, "v")),
            replace(TOPK, paper="TopK + AuxK (approx)"),
        ),
        places=(1,),
    ),
    PaperFigure(
        9,
        L0,
        MIDDLE,
        (
            replace(JUMP, paper="JumpReLU (original)"),
            Series(
                "JumpReLU (target L0)",
                "target L0",
                _spare(0),
                TARGETED,
                {"coefficient": r"^1(?:\.0)?$"},
            ),
            Series(
                "",
                "target L0 x 0.1",
                _spare(4, "v"),
                TARGETED,
                {"coefficient": r"^0\.1$"},
            ),
        ),
        places=(1,),
    ),
    PaperFigure(10, L0, (Row("mlp", LOG_LOSS),)),
    PaperFigure(11, L0, (Row("attn", LOG_LOSS),)),
    PaperFigure(12, L0, tuple(Row(site, FVU) for site in SITES)),
    PaperFigure(13, LOSS, (Row("resid", DEAD),)),
    PaperFigure(
        16,
        L0,
        tuple(Row(site, UNIFORMITY) for site in SITES),
        (replace(GATED, paper=""), RI_L1, JUMP, TOPK, RELU),
    ),
    PaperFigure(
        17,
        L0,
        MIDDLE,
        tuple(
            Series(name.lower(), name, look, THETA, where)
            for name, look, where in (
                ("Rectangle", OWN["JumpReLU"], CHOSEN),
                ("Triangle", _spare(0), windowed("Triangle")),
                ("Epanechnikov", _spare(3, "v"), windowed("Epanechnikov")),
                ("Gaussian", _spare(1, "P"), windowed("Gaussian")),
            )
        ),
        places=(1,),
    ),
)


def paper_points() -> pd.DataFrame:
    """The paper's points of `FIGURES`; its layers 9, 20 and 31 are the places 0, 1 and 2.

    Readings below 0 are zeros. In figure 16 the Gated curve is named RI-L1, as in the paper, but
    its values of L0 are those of the original Gated SAEs in figures 2 and 10 to 12: it may be
    theirs.
    """
    read = pd.read_csv(CURVES, comment="#")
    read = read.assign(figure=read["figure"].str.extract(r"fig(\d+)")[0].astype(int))
    read = read[read["figure"].isin([each.number for each in FIGURES])]
    panel = read["panel"].str.extract(r"(?P<site>\w+?)_L(?P<layer>\d+)")
    layer = panel["layer"].astype(int)
    return read.assign(
        site=panel["site"],
        layer=layer,
        place=layer.rank(method="dense").astype(int) - 1,
        measure=read["y_name"].map({name: each.column for name, each in MEASURED.items()}),
        x=read["x"].astype(float),  # words in figure 6
        y=read["y"].clip(lower=0),
    ).reindex(columns=COLUMNS)


def located(sites: "pd.Series[str]") -> pd.DataFrame:
    """Of the sites that are of the paper's kinds, in their index: columns layer, kind (of `SITES`)
    and place: layers in order, one layer in the middle.

    Raises:
        InputError: more than three layers.
    """
    found = sites.astype(str).str.extract(r"^layers\.(?P<layer>\d+)\.(?P<kind>\w+)$")
    found = found.assign(kind=found["kind"].map(KINDS)).dropna().astype({"layer": int})
    layers = sorted(found["layer"].unique())
    if len(layers) > len(PLACES):
        raise InputError(
            f"figures of the paper: they have {len(PLACES)} layers, the run {len(layers)} "
            f"({', '.join(map(str, layers))}); leave some out"
        )
    first = (len(PLACES) - len(layers)) // 2
    places = {layer: first + index for index, layer in enumerate(layers)}
    return found.assign(place=found["layer"].map(places))


def placed(table: pd.DataFrame) -> pd.DataFrame:
    """The measured rows of a run's table at the paper's kinds of sites, with the columns of
    `located` and line: that of `_lines.cell`, and of released SAEs, of which it is not known how
    they were trained, the name that they were given.

    Raises:
        InputError: more than three layers.
    """
    rows = table.dropna(subset=["l0"]).reset_index(drop=True)
    found = located(rows["site"])
    rows = rows.loc[found.index].assign(**found)
    return rows.assign(line=cell(rows).mask(rows["status"] == RELEASED, rows["series"]))


def points_of(table: pd.DataFrame, figures: Iterable[PaperFigure] = FIGURES) -> pd.DataFrame:
    """The points of a run, means over seeds; none of what its table does not hold.

    Args:
        table: columns status, series, architecture, penalty, kernel, setting, eval_set, site, l0,
            and any of the figures' measures.
        figures: that are to be drawn.

    Raises:
        InputError: as `placed`.
    """
    rows = placed(table)
    parts = [part for each in figures for part in _points(rows, each)]
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def _points(rows: pd.DataFrame, figure: PaperFigure) -> Iterator[pd.DataFrame]:
    keys = ["place", "layer", "setting", "eval_set"]
    for series in figure.series:
        own = series.rows(rows)
        for row in figure.rows:
            if {figure.x.column, row.y.column} <= set(own):
                here = own[(own["kind"] == row.site) & own["place"].isin(figure.places)]
                ends = {end: here.get(f"{row.y.column}_{end}", np.nan) for end in BARS}
                scaled = here.assign(
                    x=here[figure.x.column] * figure.x.factor,
                    y=here[row.y.column] * row.y.factor,
                    **{end: values * row.y.factor for end, values in ends.items()},
                ).dropna(subset=["x", "y"])
                if len(scaled):
                    yield (
                        scaled.groupby(keys, as_index=False)[["x", "y", *BARS]]
                        .mean()
                        .assign(
                            figure=figure.number,
                            site=row.site,
                            measure=row.y.column,
                            series=series.key,
                        )
                    )


def ratios(points: pd.DataFrame, figure: int, to: Series = JUMP, l0: float = 50.0) -> pd.DataFrame:
    """y of each series over that of `to` at one L0, interpolated monotonically in log y against log
    L0: one row a series, one column a place. NaN outside a curve's range, and between points whose
    interval reaches 0: their logarithm is noise."""
    here = points[(points["figure"] == figure) & (points["y"] > 0)]
    logs = {key: _log_at(curve, l0) for key, curve in here.groupby(["series", "place"])}
    values = pd.Series(logs, dtype=float).unstack() if logs else pd.DataFrame()
    if to.key not in values.index:
        return pd.DataFrame()
    return np.exp(values - values.loc[to.key])


def _log_at(curve: pd.DataFrame, l0: float) -> float:
    rows = curve.sort_values("x")
    x, y = np.log(rows[["x", "y"]].to_numpy(float)).T
    last = int(np.searchsorted(x, math.log(l0)))
    if (rows["low"].iloc[max(last - 1, 0) : last + 1] <= 0).any():
        return math.nan
    return float(interpolate(x, y, np.array([math.log(l0)]))[0])


def with_series(table: pd.DataFrame, series: Sequence[Series]) -> pd.DataFrame:
    """The placed rows of a run that belong to these series, named in the column `curve`."""
    rows = placed(table)
    return pd.concat([each.rows(rows).assign(curve=each.name) for each in series])
