"""Measures of the thresholds of a trained arm."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from sae_bench.ablation import Finished

MOVED = 0.5
"""A threshold that has changed by more than this share of its start has moved."""


def theta_of(finished: Finished, arm: str) -> Float[np.ndarray, " latents"]:
    """The thresholds of a trained arm, in the units of training."""
    theta = finished.sae(arm).threshold
    assert theta is not None
    return theta.detach().double().numpy() / finished.cache.scale


def moved(theta: Float[np.ndarray, " latents"], start: float) -> float:
    """Share of thresholds with |theta - start| / start > `MOVED`."""
    return float((np.abs(theta / start - 1) > MOVED).mean())


def spread(
    theta: Float[np.ndarray, "orders latents"], fired: Bool[np.ndarray, " latents"]
) -> float:
    """Median over latents that fired of the standard deviation of log theta over data orders (n - 1
    in the denominator; of two orders the median is 0.67 of a normal's standard deviation). NaN if
    none fired."""
    if not fired.any():
        return float("nan")
    return float(np.median(np.log(theta[:, fired]).std(axis=0, ddof=1)))


def steps_to(history: pd.DataFrame, l0: float) -> float:
    """The logged step from which on no batch has an L0 above `l0` (codes are sparse for a moment at
    the start, too); NaN if the last one has."""
    within = (history["l0"] <= l0)[::-1].cumprod()[::-1].astype(bool)
    return float(history.loc[within, "step"].iloc[0]) if within.any() else float("nan")
