"""Statistics of results: ratios of sums, with intervals."""

import numpy as np
from jaxtyping import Float, Int, Shaped

REPLICATES = 1_000
FEWEST = 10
"""Documents below which there is no interval: a bootstrap over fewer means nothing."""

LEVEL = 0.95


def sums_by(
    groups: Int[np.ndarray, " n"], *values: Shaped[np.ndarray, " n"]
) -> list[Float[np.ndarray, " groups"]]:
    """Sums of each array of values within equal `groups` labels, in float64."""
    _, index = np.unique(groups, return_inverse=True)
    sums = (np.bincount(index, weights=value.astype(np.float64)) for value in values)
    return [each.astype(np.float64) for each in sums]  # those of nothing are integers


def bootstrap_ratio(
    numerator: Float[np.ndarray, " documents"],
    denominator: Float[np.ndarray, " documents"],
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval (95%) of sum(numerator) / sum(denominator) over resampled documents.

    Documents, not tokens, are the independent units of text. This is evaluation noise only: the
    spread over training seeds is another matter.

    Returns:
        Lower and upper end; both NaN with fewer than `FEWEST` documents.
    """
    n = len(numerator)
    if n < FEWEST:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    ratios = []
    for _ in range(REPLICATES):
        counts = np.bincount(generator.integers(0, n, n), minlength=n)
        ratios.append((counts @ numerator) / (counts @ denominator))
    low, high = np.nanquantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
