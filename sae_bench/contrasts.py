"""Contrasts between cells of a grid at matched x: interpolation, paired seeds, t-intervals.

A cell is a line of a figure: for each seed a curve y(x) through its sparsity settings. Cells are
compared where x is equal (matched L0, say), one seed at a time, and only where every curve has
been measured on both sides: nothing is extrapolated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from scipy.stats import t as student

from sae_bench.errors import InputError

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its t-interval.

    n: number of seeds; low, high: NaN below two seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, row: Any) -> Self:
        """That of a row with its four numbers."""
        return cls(row.mean, row.low, row.high, row.n)

    def percent(self) -> str:
        """An effect on a logarithm, as a change in percent."""
        return self._said(lambda value: f"{100 * math.expm1(value):+.1f}", "%{}")

    def points(self) -> str:
        """An effect on a share, in percentage points."""
        return self._said(lambda value: f"{100 * value:+.2f}", "{} points")

    def nats(self) -> str:
        """An effect on a loss, in nats."""
        return self._said(lambda value: f"{value:+.3f}", "{}")

    def _said(self, number: Callable[[float], str], frame: str) -> str:
        """The mean, and in brackets the interval, which one value has none of."""
        between = f" [{number(self.low)}, {number(self.high)}]" if self.n > 1 else ""
        return number(self.mean) + frame.format(between)

    @property
    def half_width(self) -> float:
        """Half the length."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it is on one side of 0."""
        return self.low > 0 or self.high < 0

    @property
    def margin(self) -> float:
        """By how much the mean would have to move, at this width, for the interval to begin or to
        cease to exclude 0."""
        return abs(abs(self.mean) - self.half_width)


def t_interval(values: Float[np.ndarray, " seeds"], level: float = LEVEL) -> Interval:
    """mean +- t s / sqrt(n), with s the standard deviation over n - 1 and t the quantile
    (1 + level) / 2 of Student's distribution with n - 1 degrees of freedom. NaNs are left out."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(student.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def interpolate(
    x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], at: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """y at `at`, piecewise cubic and monotone wherever the points are (Fritsch and Carlson's
    slopes); NaN outside the points' range. Points that are not finite are left out, those of equal
    x averaged; fewer than two leave nothing to interpolate."""
    at = np.asarray(at, dtype=float)
    finite = np.isfinite(x) & np.isfinite(y)
    places, index = np.unique(np.asarray(x, dtype=float)[finite], return_inverse=True)
    if len(places) < 2:
        return np.full(len(at), math.nan)
    means = np.bincount(index, weights=np.asarray(y, dtype=float)[finite]) / np.bincount(index)
    return np.asarray(PchipInterpolator(places, means, extrapolate=False)(at))


def matched(table: pd.DataFrame, x: str, y: str, at: Sequence[float], by: str) -> pd.DataFrame:
    """y of every cell and seed at matched x: one row a (cell, seed), one column a value of x, NaN
    where that lies outside the curve's range.

    Args:
        table: one row an arm and one evaluation set.
        x, y: columns; take logarithms beforehand where a scale is logarithmic.
        at: values of x.
        by: column that names the cells.

    Raises:
        InputError: several evaluation sets.
    """
    if table["eval_set"].dropna().nunique() > 1:
        raise InputError("contrasts: rows of one evaluation set, please; choose one beforehand")
    places = np.asarray(at, dtype=float)
    curves = {
        key: interpolate(rows[x].to_numpy(float), rows[y].to_numpy(float), places)
        for key, rows in table.groupby([by, "seed"], sort=True)
    }
    index = pd.MultiIndex.from_tuples(list(curves), names=[by, "seed"])
    return pd.DataFrame(list(curves.values()), index=index, columns=list(at))


def common_range(
    table: pd.DataFrame, x: str, y: str, by: str, cells: Sequence[str]
) -> tuple[float, float]:
    """Where the curves of all seeds of all `cells` have been measured: the largest minimum and the
    smallest maximum of x over rows where y is known. The first exceeds the second if there is no
    such place."""
    rows = table[table[by].isin(cells) & np.isfinite(table[x]) & np.isfinite(table[y])]
    ranges = rows.groupby([by, "seed"])[x].agg(["min", "max"])
    return float(ranges["min"].max()), float(ranges["max"].min())


@dataclass(frozen=True)
class Square:
    """A 2x2 of cells: factor A off or on, factor B off or on.

    With y the values of one seed at one place,

        A           ((a - neither) + (both - b)) / 2
        B           ((b - neither) + (both - a)) / 2
        interaction  (both - a) - (b - neither)
        together      both - neither = A + B

    and the four simple effects, each factor without and with the other.

    Args:
        neither, a, b, both: names of the cells.
    """

    neither: str
    a: str
    b: str
    both: str

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The four names."""
        return self.neither, self.a, self.b, self.both

    def contrasts(self, values: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Each contrast: one row a seed that all four cells have, columns as in `values`.

        Args:
            values: what `matched` gives.

        Raises:
            InputError: a cell is missing.
        """
        held = set(values.index.get_level_values(0))
        if absent := [cell for cell in self.cells if cell not in held]:
            raise InputError(f"contrasts: the table has no rows of {absent[0]!r}")
        neither, a, b, both = (values.loc[cell] for cell in self.cells)
        found = {
            "A": ((a - neither) + (both - b)) / 2,
            "B": ((b - neither) + (both - a)) / 2,
            "interaction": (both - a) - (b - neither),
            "together": both - neither,
            "A without B": a - neither,
            "A with B": both - b,
            "B without A": b - neither,
            "B with A": both - a,
        }
        return {name: frame.dropna(how="all") for name, frame in found.items()}


def effects(contrasts: Mapping[str, pd.DataFrame]) -> dict[str, Interval]:
    """The interval over seeds of each contrast's mean over those places that every seed of every
    contrast has."""
    whole = [frame.columns[frame.notna().all()] for frame in contrasts.values()]
    places = [place for place in whole[0] if all(place in others for others in whole)]
    return {
        name: t_interval(frame[places].mean(axis=1).to_numpy() if places else np.empty(0))
        for name, frame in contrasts.items()
    }


@dataclass(frozen=True)
class Outcome:
    """What is compared, and where.

    Args:
        y: column.
        x: column that is matched.
        name: in words.
        at: values of x, of which those are used that lie inside the range of all seeds of all
            cells compared; empty: SPREAD values, evenly inside that range.
    """

    y: str
    x: str
    name: str
    at: tuple[float, ...] = ()

    def places(self, table: pd.DataFrame, by: str, cells: Sequence[str]) -> list[float]:
        """The values of x that are used; none if there is no common range."""
        low, high = common_range(table, self.x, self.y, by, cells)
        if not low < high:
            return []
        at = self.at or np.linspace(low, high, SPREAD + 2)[1:-1]
        return [float(x) for x in at if low <= x <= high]


SPREAD = 5


def difference(
    table: pd.DataFrame, outcome: Outcome, by: str, of: str, to: str
) -> tuple[Interval, list[float]]:
    """One cell minus another, mean over the places that both reach, paired over seeds; and the
    places.

    Args:
        table: one row an arm.
        outcome: what is compared.
        by: column that names the cells.
        of, to: the cells.
    """
    places = outcome.places(table, by, (of, to))
    values = matched(table, outcome.x, outcome.y, places, by)
    apart = (values.loc[of] - values.loc[to]).mean(axis=1)
    return t_interval(apart.to_numpy(dtype=float)), places


def compare(
    table: pd.DataFrame, squares: Mapping[str, Square], outcomes: Sequence[Outcome], by: str
) -> pd.DataFrame:
    """Every contrast of every outcome in every 2x2: columns way (the name of the square), outcome,
    contrast, places (how many), mean, low, high, n (seeds); NaN where there is no common place."""
    rows = []
    for way, square in squares.items():
        for outcome in outcomes:
            places = outcome.places(table, by, square.cells)
            values = matched(table, outcome.x, outcome.y, places, by)
            rows += [
                {"way": way, "outcome": outcome.name, "contrast": name, "places": len(places)}
                | vars(found)
                for name, found in effects(square.contrasts(values)).items()
            ]
    return pd.DataFrame(rows)


def at_each_place(
    table: pd.DataFrame, squares: Mapping[str, Square], outcomes: Sequence[Outcome], by: str
) -> pd.DataFrame:
    """`compare`, means over places first, then every place of each outcome alone: one more column,
    at (the value of x; NaN for the mean). Places that not all cells reach have no rows."""
    found = [compare(table, squares, outcomes, by).assign(at=math.nan)]
    for outcome in outcomes:
        for x in outcome.at:
            alone = compare(table, squares, [replace(outcome, at=(x,))], by)
            found.append(alone[alone["places"] > 0].assign(at=x))
    return pd.concat([rows for rows in found if len(rows)], ignore_index=True)


def intervals(rows: pd.DataFrame) -> dict[str, Interval]:
    """The contrasts of one way and outcome, by name.

    Args:
        rows: of what `compare` gives.
    """
    return {r.contrast: Interval.of(r) for r in rows.itertuples()}
