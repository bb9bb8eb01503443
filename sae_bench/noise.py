"""The gradient-noise instrument: how well estimators know the slope of the loss in a threshold.

At frozen weights every estimator sees the same batches, and all are held against the central
finite difference of the mean loss in theta_i. Everything here is in the units of training
(E||x||^2 = 1): bandwidths as in an arm, gradients in units of normalised loss over normalised pre.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.annotations import typed
from sae_bench.autocorrelation import Series
from sae_bench.cache import ActivationCache
from sae_bench.components import walk
from sae_bench.devices import default_device
from sae_bench.errors import InputError
from sae_bench.estimator import Estimator, Remembering
from sae_bench.estimators import BatchKDE, MeanKDE, MomentumKDE, PersistentBandwidth, WindowKDE
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.progress import shown
from sae_bench.sae import ESTIMATOR, SparseAutoencoder
from sae_bench.samples import Coefficient, ExactJump, Present, Samples, StraightThrough
from sae_bench.side_by_side import SideBySide

EDGES = (-4.0, -3.0, -2.0, -1.0)
"""Default boundaries of the frequency buckets, as log10 of the firing frequency."""

MAX_STEPS = 1_000
"""Batches that are measured unless a number is given; fewer if the cache has fewer."""


# -- the reference --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FiniteDifference(Coefficient):
    """2 pre e - pre^2 ||d||^2 - lambda (jump of the penalty at pre): the loss of a token with the
    latent off minus its loss with the latent on. That is `ExactJump` at f = pre instead of theta.
    """

    def __call__(self, samples: Samples, present: Present) -> Float[Tensor, " *shape"]:
        """The coefficient of every sample."""
        return ExactJump()(samples, present._replace(theta=samples.pre))


def reference(half_width: float) -> BatchKDE:
    """[L(theta_i + h) - L(theta_i - h)] / (2 h) for h = `half_width`, every latent by itself, the
    others fixed, L the mean loss of the batch.

    With weights frozen, only tokens with |pre_i - theta_i| < h change, each from on to off: the sum
    of their loss differences over 2 h N is a kernel estimate with the rectangle of bandwidth 2 h.
    Exact for losses quadratic in the codes with penalties additive over tokens; penalties of batch
    means are linearised at the batch's own mean. Its bias against the slope is h^2 / 6 times the
    third derivative of the loss.
    """
    return BatchKDE(Rectangle(2 * half_width), coefficient=FiniteDifference())


def standard(kernel: Kernel, steps: int = 8) -> list[Estimator]:
    """The estimators that the suite has, around one kernel: batch, momentum, mean and window over
    `steps` steps, each with straight-through and exact-jump coefficients, and the exact-jump batch
    with persistent bandwidths."""
    chosen: list[Estimator] = []
    for coefficient in (StraightThrough(), ExactJump()):
        chosen.append(BatchKDE(kernel, coefficient=coefficient))
        chosen += [
            remembering(kernel, steps=steps, coefficient=coefficient)
            for remembering in (MomentumKDE, MeanKDE, WindowKDE)
        ]
    return [*chosen, PersistentBandwidth(BatchKDE(kernel, coefficient=ExactJump()))]


# -- the instrument -------------------------------------------------------------------------------


@typed()
def gradient_noise(
    sae: SparseAutoencoder,
    cache: ActivationCache,
    estimators: Sequence[Estimator],
    *,
    batch_size: int = 1024,
    steps: int | None = None,
    seed: int = 0,
    block: int = 16,
    edges: Sequence[float] = EDGES,
    half_width: float | None = None,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Bias and noise of threshold gradients at frozen weights, by latent frequency.

    The SAE is copied, unfolded by the cache's scale and shown its normalised batches; nothing about
    `sae` is different afterwards. One pass serves all estimators and the reference. Where an
    estimator remembers T steps, the batch estimator of the same kernel and coefficient is measured
    too, at this batch size and, with equal samples, at a batch T times as large.

    Args:
        sae: with trainable thresholds; takes raw activations (saved or loaded ones do).
        cache: its rows are visited once at most: beyond an epoch, batches drawn without replacement
            cancel each other's noise.
        estimators: in the units of training, as in an arm (not the `kernel` of a folded SAE).
        batch_size: tokens of a batch.
        steps: batches; the first `block` of them only fill memories. None: one epoch, at most
            MAX_STEPS.
        seed: of the order of the batches.
        block: batches of a block of the integrated variance, even: at least twice the longest
            memory (more for momentum, whose memory has a tail).
        edges: boundaries of the buckets, log10 of the firing frequency, ascending.
        half_width: h of the reference; None: an eighth of the smallest bandwidth.
        device: where to compute; None: the accelerator if there is one.

    Returns:
        One row for each estimator, batch size and bucket with latents (those that never fired are
        in the lowest): `estimator` (its label), `coefficient`, `kernel`, `bandwidth`, `steps` (its
        memory T), `batch_size`, `measured` (steps of that batch size), `bucket`; then, averaged
        over the `latents` of the bucket, `frequency`, `reference` and `reference_se`, `bias` =
        gradient - reference and `bias_se`, `variance` of a step, `integrated_variance`,
        `relative_noise` = sqrt(variance / mean squared reference, its own noise subtracted; NaN
        where nothing is left, or the gradient was always 0), `in_window` (samples of a step's batch
        with K > 0 at the estimator's own kernel) and `hit` (share of steps with a gradient that is
        not 0). Standard errors are of the bucket's mean, over blocks of batches.

    Raises:
        InputError: an SAE without trainable thresholds or of another width, no estimators or one
            twice, a number out of range, fewer tokens than are needed. Nothing has been computed.
    """
    measured, rows = _plan(estimators)
    steps = min(cache.rows // max(batch_size, 1), MAX_STEPS) if steps is None else steps
    _check_numbers(batch_size, block, edges)
    _check_sizes(sae, cache, batch_size, steps, block, max(pooled for _, pooled in rows))
    if half_width is None:
        half_width = min(estimator.kernel.bandwidth for estimator in measured) / 8
    device = default_device(device)
    panel = SideBySide((reference(half_width), *measured))
    frozen = _frozen(sae, panel, cache.scale).to(device)
    truth = Series(0, 1, block, sae.d_sae)
    series = [Series(1 + index, pooled, block, sae.d_sae) for index, pooled in rows]
    fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    batches = cache.placed(device).batches(batch_size, seed)
    numbers = shown(range(steps), f"measuring {len(measured)} estimators", steps, "batches")
    for index, x in zip(numbers, batches, strict=False):
        loss = frozen.loss(x)
        loss.latents.f.retain_grad()
        loss.total.backward(inputs=[loss.latents.f])
        frozen.estimate_(loss, 1.0)
        if index < block:
            continue
        fired += (loss.latents.f > 0).sum(0)
        given = (frozen.get_buffer(ESTIMATOR + name) for name in ("gradient", "inside"))
        gradients, inside = (tensor.cpu().double().numpy() for tensor in given)
        for each in (truth, *series):
            each.add(gradients, inside)
    frequency = fired.cpu().numpy() / ((steps - block) * batch_size)
    return pd.DataFrame(
        [
            {**_identity(measured[each.row - 1], each, batch_size), **row}
            for each in series
            for row in _by_bucket(each, truth, frequency, edges)
        ]
    )


def _plan(estimators: Sequence[Estimator]) -> tuple[list[Estimator], list[tuple[int, int]]]:
    """The estimators to run, controls included, and which of them with how many batches a step."""
    if len(set(estimators)) != len(estimators) or not estimators:
        raise InputError(f"gradient_noise: give each estimator once, got {len(estimators)} of them")
    remembering = [estimator for estimator in estimators if isinstance(estimator, Remembering)]
    controls = [BatchKDE(each.kernel, coefficient=each.coefficient) for each in remembering]
    measured = list(dict.fromkeys([*estimators, *controls]))
    enlarged = [
        (measured.index(control), each.steps)
        for control, each in zip(controls, remembering, strict=True)
    ]
    return measured, list(dict.fromkeys([*((i, 1) for i in range(len(measured))), *enlarged]))


def _check_numbers(batch_size: int, block: int, edges: Sequence[float]) -> None:
    if batch_size < 1 or block < 2 or block % 2:
        raise InputError(
            "gradient_noise: batch_size must be positive and block even and positive, "
            f"got {batch_size} and {block}"
        )
    if not edges or list(edges) != sorted(set(edges)):
        raise InputError(f"gradient_noise: edges must ascend, got {list(edges)}")


def _check_sizes(
    sae: SparseAutoencoder,
    cache: ActivationCache,
    batch_size: int,
    steps: int,
    block: int,
    memory: int,
) -> None:
    if sae.threshold is None or not sae.threshold_parameters:
        raise InputError(f"gradient_noise: a {type(sae).__name__} has no trainable thresholds")
    if sae.d_in != cache.d_in:
        raise InputError(
            f"gradient_noise: the SAE reads activations of width {sae.d_in}, "
            f"the cache holds width {cache.d_in}"
        )
    if 2 * memory > block:
        raise InputError(
            f"gradient_noise: a block of {block} batches is too short for an estimator that "
            f"remembers {memory} steps; use block={2 * memory} or more"
        )
    if steps < 3 * block:
        raise InputError(
            f"gradient_noise: {steps} steps of {batch_size} tokens are too few for blocks of "
            f"{block}: {3 * block} are needed; use more tokens, smaller batches or a smaller block"
        )
    if steps * batch_size > cache.rows:
        raise InputError(
            f"gradient_noise: {steps} steps of {batch_size} tokens are more than the cache's "
            f"{cache.rows}; use at most {cache.rows // batch_size} steps"
        )


def _frozen(sae: SparseAutoencoder, panel: SideBySide, scale: float) -> SparseAutoencoder:
    """A float32 copy of a folded SAE, in the units of training, with the panel as its estimator."""
    copy = type(sae)(sae.d_in, sae.d_sae, seed=sae.seed, **{**sae.slots, "kernel": panel})
    weights = sae.state_dict()
    copy.load_state_dict(
        {name: value for name, value in weights.items() if not name.startswith(ESTIMATOR)},
        strict=False,
    )
    copy.fold_(1 / scale)
    copy.kernel = panel  # given in the units of training already
    return copy.train()


def _identity(estimator: Estimator, series: Series, batch_size: int) -> dict[str, object]:
    """The columns that say what was measured."""
    parts = list(walk(estimator))
    coefficients = (type(part).__name__ for part in parts if isinstance(part, Coefficient))
    return {
        "estimator": estimator.label,
        "coefficient": next(coefficients, ""),
        "kernel": type(estimator.kernel).__name__,
        "bandwidth": estimator.kernel.bandwidth,
        "steps": next((part.steps for part in parts if isinstance(part, Remembering)), 1),
        "batch_size": series.pooled * batch_size,
        "measured": series.steps,
    }


def _by_bucket(
    series: Series, truth: Series, frequency: np.ndarray, edges: Sequence[float]
) -> Iterator[dict[str, object]]:
    """The measurements of one series, a row a bucket."""
    slope, noise = truth.mean()[0], truth.variance() / truth.steps
    _, _, hit, inside = series.mean()
    variance, integrated = series.variance(), series.integrated()
    with np.errstate(divide="ignore"):
        buckets = pd.cut(np.log10(frequency), [-np.inf, *edges, np.inf], right=False)
    for bucket in buckets.categories:
        latents = np.flatnonzero(buckets == bucket)
        if not len(latents):
            continue
        gradient, paired = series.blocks(latents)
        bias, bias_se = _with_error(gradient - paired)  # paired: the same batches
        target, target_se = _with_error(truth.blocks(latents)[1])
        signal = (slope[latents] ** 2 - noise[latents]).mean()
        yield {
            "bucket": str(bucket),
            "latents": len(latents),
            "frequency": frequency[latents].mean(),
            "reference": target,
            "reference_se": target_se,
            "bias": bias,
            "bias_se": bias_se,
            "variance": variance[latents].mean(),
            "integrated_variance": integrated[latents].mean(),
            "relative_noise": (
                (variance[latents].mean() / signal) ** 0.5
                if signal > 0 and hit[latents].any()
                else np.nan
            ),
            "in_window": inside[latents].mean(),
            "hit": hit[latents].mean(),
        }


def _with_error(blocks: Float[np.ndarray, " blocks"]) -> tuple[float, float]:
    """The mean over blocks, taken as independent, and its standard error."""
    return float(blocks.mean()), float(blocks.std(ddof=1) / len(blocks) ** 0.5)
