"""FVU of the lines of the JumpReLU paper over that of JumpReLU, over sites, here and there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ablations._paper_figures import FIVE, JUMP, ratios
from sae_bench.contrasts import Interval, t_interval

PLACES = (30, 50, 100)
"""L0 at which FVU is compared over sites."""
HERE, THERE = "trained here", "the paper"


def over_sites(points: pd.DataFrame, figures: Sequence[int], l0: float) -> dict[str, np.ndarray]:
    """log of y over that of JumpReLU at one L0 for each series: one value a site (kind and layer)
    that both reach.

    Args:
        points: as `ratios`.
        figures: that show the same measure.
        l0: where.
    """
    found: dict[str, list[float]] = {}
    for number in figures:
        for _, site in points.groupby("site"):
            for series, row in ratios(site, number, l0=l0).iterrows():
                found.setdefault(str(series), []).extend(np.log(row.dropna().to_numpy(float)))
    return {series: np.array(values) for series, values in found.items()}


def by_sites(own: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Log FVU of each line of the run (of) minus that of JumpReLU (to), `HERE` and, where it has
    that line, `THERE` (way), mean over sites: columns way, of, to, l0, mean, low, high (95%
    t-interval over sites), n (sites), higher (at how many of them it is above 0).

    Args:
        own, paper: points, as `ratios`.
    """
    rows = []
    for l0 in PLACES:
        here, there = (over_sites(points, (12,), l0) for points in (own, paper))
        for series in FIVE:
            if series is JUMP or series.key not in here:
                continue
            for way, found in ((HERE, here), (THERE, there)):
                if (logs := found.get(series.key)) is not None:
                    row = {"way": way, "of": series.name, "to": JUMP.name, "l0": float(l0)}
                    rows.append(row | vars(t_interval(logs)) | {"higher": int((logs > 0).sum())})
    return pd.DataFrame(rows)


def in_words(row: Any) -> str:
    """A row of `by_sites`: the mean, and at how many sites JumpReLU's is lower."""
    if not row.n:
        return "no common range"
    shown = Interval.of(row).percent()
    return f"{shown}, higher at {row.higher} of {row.n} sites"
