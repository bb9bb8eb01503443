"""Windows around thresholds: whose they are, how far thresholds travelled, how much they see.

Kernels differ in their supports. So that distances and counts mean the same for all, the window of
a kernel is here the rectangle of equal standard deviation, |pre - theta| < half with
half = eps sqrt(3 mu2): for the rectangle itself that is where K > 0.
"""

import math
from collections.abc import Iterable
from itertools import islice

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablations._lines import prepared
from ablations._threshold_measures import theta_of
from sae_bench.ablation import Finished
from sae_bench.arm import Arm
from sae_bench.kernels import Epanechnikov, Gaussian, Kernel, Rectangle, Triangle
from sae_bench.sae import SparseAutoencoder

SHAPES: dict[str, type[Kernel]] = {
    shape.__name__: shape for shape in (Rectangle, Triangle, Epanechnikov, Gaussian)
}
FLOOR = 0.005
"""Differences of log FVU up to which there is none: interpolation between settings errs by a few
tenths of a percent, which no interval over seeds holds."""
BATCHES = 16
"""Held-out batches on which samples are counted."""


def half_window(kernel: Kernel) -> float:
    """Half the width of the rectangle of equal standard deviation, eps sqrt(3 mu2)."""
    return kernel.bandwidth * math.sqrt(3 * kernel.variance)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that were measured, with logarithms, and of each kernel shape, bandwidth, deviation
    (standard) and pull (a key of `PULLS`), out of the estimator's label."""
    known = prepared(table)
    found = known["kernel"].str.extract(r"(?P<shape>\w+)\((?P<bandwidth>[\d.e+-]+)\)")
    bandwidth = found["bandwidth"].astype(float)
    spreads = found["shape"].map({name: cls.variance**0.5 for name, cls in SHAPES.items()})
    spreads = spreads.astype(float)  # those of no rows are text otherwise
    is_exact = known["kernel"].str.contains("ExactJump")
    return known.assign(
        shape=found["shape"],
        bandwidth=bandwidth,
        deviation=bandwidth * spreads,
        pull=is_exact.map({True: ", exact jump", False: ""}),
    )


@torch.no_grad()
def inside(
    sae: SparseAutoencoder, batches: Iterable[Float[Tensor, "batch d_in"]], half: float
) -> Int[np.ndarray, "2 batches latents"]:
    """Samples with |pre - theta| < half of each batch and latent, in the units of the SAE: all, and
    those of them with pre <= 0."""
    theta = sae.threshold
    assert theta is not None
    found = []
    for x in batches:
        pre = sae.latents(x.to(theta.device)).pre
        near = (pre - theta).abs() < half
        found.append([near.sum(0).cpu().numpy(), (near & (pre <= 0)).sum(0).cpu().numpy()])
    return np.array(found).swapaxes(0, 1)


def windows(finished: Finished, arms: Iterable[Arm]) -> pd.DataFrame:
    """One row an arm that was measured, over all its latents, counts on shuffled held-out batches
    of the size it was trained with:

        theta      median threshold, in units of training
        travel     median |log theta - log theta_0|, theta_0 the start
        count      samples in the window, mean over latents and batches: N times its width times
                   the density at the threshold, for N tokens
        hit        share of (latent, batch) with at least one sample
        expected   mean over latents of 1 - exp(-count of the latent): `hit`, if samples came
                   independently of each other
        below      share of the samples in windows whose pre-activation is not positive
    """
    held_out = finished.cache.held_out
    assert held_out is not None
    there = set(finished.table.loc[finished.table["l0"].notna(), "arm"])
    chosen = [arm for arm in arms if arm.key in there]
    raw = held_out.scaled(1.0)
    batches = {
        size: list(islice(raw.batches(size, seed=0), BATCHES))
        for size in {arm.recipe.batch_size for arm in chosen}
    }
    found = []
    for arm in chosen:
        half, start = half_window(arm.slots["kernel"].kernel), arm.slots["activation"].form.start
        theta = theta_of(finished, arm.key)
        counts, under = inside(
            finished.sae(arm.key), batches[arm.recipe.batch_size], half * finished.cache.scale
        )
        found.append(
            {
                "arm": arm.key,
                "theta": float(np.median(theta)),
                "travel": float(np.median(np.abs(np.log(theta / start)))),
                "count": float(counts.mean()),
                "hit": float((counts > 0).mean()),
                "expected": float(-np.expm1(-counts.mean(0)).mean()),
                "below": float(under.sum() / max(counts.sum(), 1)),
            }
        )
    return pd.DataFrame(found)


SEEN = {
    "theta": "median theta",
    "travel": "travel",
    "count": "count",
    "hit": "hit",
    "expected": "hit expected",
    "below": "below 0",
}
"""Columns of `windows` as an answer shows them."""
EXPLAINED = (
    "travel = median |log theta / start|; count = samples of a held-out batch in a latent's "
    "window, the rectangle of equal standard deviation; hit = share of latents and batches with at "
    "least one, beside what independent samples would give; below 0 = share of these samples with "
    "pre <= 0"
)
