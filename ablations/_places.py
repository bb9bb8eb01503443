"""One line against another at matched L0: place by place, and in the mean over the same places for
all, so that means of several lines can be compared."""

import math
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from sae_bench.contrasts import Interval, Outcome, matched, t_interval


def apart(table: pd.DataFrame, outcome: Outcome, by: str, of: str, to: str) -> pd.DataFrame:
    """One line minus another: a row a seed that both have, a column a value of L0 out of
    `outcome.at`; NaN where one of them does not reach it with all these seeds.

    Args:
        table: one row an arm.
        outcome: what is compared, at matched log L0.
        by: column that names the lines.
        of, to: the lines.
    """
    rows = table[table[by].isin((of, to))]
    values = matched(rows, outcome.x, outcome.y, outcome.at, by)
    values.columns = pd.Index([round(math.exp(x)) for x in outcome.at])
    both = values.loc[of].index.intersection(values.loc[to].index)
    found = values.loc[of].loc[both] - values.loc[to].loc[both]
    return found.where(found.notna().all(), axis=1)


def reached(found: pd.DataFrame) -> list[int]:
    """The places that both lines reach.

    Args:
        found: what `apart` gives.
    """
    return list(found.columns[found.notna().all()]) if len(found) else []


def over(found: pd.DataFrame, places: Iterable[int]) -> Interval:
    """The mean over places, paired over seeds; no interval unless all of them are reached.

    Args:
        found: what `apart` gives.
        places: among its columns.
    """
    return t_interval(found[list(places)].mean(axis=1, skipna=False).to_numpy(float))


def intervals_of(found: pd.DataFrame, places: Iterable[int]) -> pd.DataFrame:
    """One row a place that both lines reach, then the mean over `places`: columns l0 (NaN for the
    mean), mean, low, high, n.

    Args:
        found: what `apart` gives.
        places: among its columns.
    """
    rows = [{"l0": float(l0)} | vars(over(found, [l0])) for l0 in reached(found)]
    return pd.DataFrame([*rows, {"l0": math.nan} | vars(over(found, places))])


def by_place(found: pd.DataFrame, say: Callable[[Interval], str] = Interval.percent) -> str:
    """`L0 16 +1.0% [0.8, 1.2], L0 24 ...`, those places that are reached.

    Args:
        found: what `apart` gives.
        say: how an effect is said.
    """
    return in_places(intervals_of(found, found.columns), say)


def in_places(rows: pd.DataFrame, say: Callable[[Interval], str] = Interval.percent) -> str:
    """As `by_place`.

    Args:
        rows: what `intervals_of` gives, or those of its rows that are of places.
        say: how an effect is said.
    """
    known = rows[rows["l0"].notna()]
    shown = (f"L0 {r.l0:g} {say(Interval.of(r))}" for r in known.itertuples())
    return ", ".join(shown)


def levels(table: pd.DataFrame, y: str, by: str, places: Sequence[int] = (16, 32, 64)) -> str:
    """`at L0 16, 32, 64: TopK 17%, 7%, 2%; ...`: a share, mean over seeds; a dash where a seed of
    the line does not reach that L0.

    Args:
        table: one row an arm, with log_l0.
        y: the share.
        by: column that names the lines.
        places: values of L0.
    """
    values = matched(table, "log_l0", y, [math.log(place) for place in places], by)
    means = values.groupby(by).agg(lambda each: each.mean(skipna=False))
    shown = (
        f"{name} {', '.join('-' if math.isnan(x) else f'{x:.0%}' for x in means.loc[name])}"
        for name in dict.fromkeys(table[by])
    )
    return f"at L0 {', '.join(map(str, places))}: {'; '.join(shown)}"
