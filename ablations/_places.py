"""One line against another at matched L0: place by place, and in the mean over the same places for
all, so that means of several lines can be compared."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sae_bench.contrasts import Interval, Outcome, matched, t_interval


def apart(
    table: pd.DataFrame, outcome: Outcome, by: str, of: str, to: str, places: Sequence[int]
) -> pd.DataFrame:
    """One line minus another: a row a seed, a column a place of L0; NaN at places that one of them
    does not reach with all seeds that both have.

    Args:
        table: one row an arm.
        outcome: what is compared, at matched log L0.
        by: column that names the lines.
        of, to: the lines.
        places: values of L0.
    """
    rows = table[table[by].isin((of, to))]
    values = matched(rows, outcome.x, outcome.y, [float(np.log(l0)) for l0 in places], by)
    values.columns = pd.Index(places)
    found = (values.loc[of] - values.loc[to]).reindex(
        values.loc[of].index.intersection(values.loc[to].index)
    )
    return found.where(found.notna().all(), axis=1)


def over(found: pd.DataFrame, places: Sequence[int]) -> Interval:
    """The mean over places, paired over seeds; no interval unless all of them are reached.

    Args:
        found: what `apart` gives.
        places: among its columns.
    """
    return t_interval(found[list(places)].mean(axis=1, skipna=False).to_numpy(float))


def by_place(found: pd.DataFrame) -> str:
    """`L0 16 +1.0% [0.8, 1.2], L0 24 ...`, those places that are reached.

    Args:
        found: what `apart` gives, of a logarithm.
    """
    shown = (
        f"L0 {l0} {t_interval(found[l0].to_numpy(float)).percent()}"
        for l0 in found.columns[found.notna().all()]
    )
    return ", ".join(shown)
