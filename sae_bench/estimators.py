"""The estimators of threshold gradients; `estimator` explains what they share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_bench.bandwidth import PersistentBandwidth, SpreadRule, TargetCount
from sae_bench.estimator import (
    Bandwidth,
    Estimate,
    Estimator,
    KernelEstimator,
    Remembering,
    State,
)
from sae_bench.kernels import Kernel
from sae_bench.samples import Batch, ExactJump, StraightThrough
from sae_bench.window import WindowKDE

__all__ = [
    "BatchKDE",
    "Estimator",
    "ExactJump",
    "MeanKDE",
    "MomentumKDE",
    "PersistentBandwidth",
    "SpreadRule",
    "StraightThrough",
    "TargetCount",
    "WindowKDE",
    "as_estimator",
]


@dataclass(frozen=True)
class BatchKDE(KernelEstimator):
    """The paper's estimator: a kernel density estimate over the present batch, without state.

    With g_f = dL/df and g_H = dL/dH per token a, and u = (pre - theta) / eps,
    dL/dtheta_i = sum_a -(theta_i g_f + g_H) K(u_ai) / eps (arXiv 2407.14435, equations 11-12).
    """

    @property
    def is_backward(self) -> bool:
        """True with the straight-through coefficient: autograd computes exactly that. Subclasses
        of either may differ, and are asked."""
        return type(self) is BatchKDE and type(self.coefficient) is StraightThrough

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """The density over this batch."""
        return self.density(batch, bandwidth), {}


@dataclass(frozen=True)
class MomentumKDE(Remembering):
    """Bias-corrected exponential average of batch gradients, with decay (T - 1) / (T + 1): the
    variance of a mean over T = `steps` independent gradients.

    Memory: 4 bytes a latent.
    """

    def init(self, d_sae: int) -> dict[str, Tensor]:
        """Nothing seen."""
        return {"average": torch.zeros(d_sae), "seen": torch.zeros(())}

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """average / (1 - decay^t)."""
        decay = (self.steps - 1) / (self.steps + 1)
        gradient = self.density(batch, bandwidth)
        average = decay * state["average"] + (1 - decay) * gradient
        seen = decay * state["seen"] + (1 - decay)
        return average / seen, {"average": average, "seen": seen}


@dataclass(frozen=True)
class MeanKDE(Remembering):
    """Plain mean of the last T = `steps` batch gradients: the control that separates a window of
    samples from a window of gradients, whose thresholds and penalties have gone stale.

    Memory: 4 T bytes a latent.
    """

    def init(self, d_sae: int) -> dict[str, Tensor]:
        """An empty ring."""
        return {"ring": torch.zeros(self.steps, d_sae), "step": torch.zeros((), dtype=torch.int64)}

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """Mean over the filled part of the ring."""
        step, newest = state["step"], self.density(batch, bandwidth)
        ring = state["ring"].index_copy(0, (step % self.steps)[None], newest[None])
        filled = (step + 1).clamp(max=self.steps)
        return ring.sum(0) / filled, {"ring": ring, "step": step + 1}


def as_estimator(kernel: Kernel | Estimator) -> Estimator:
    """A bare kernel means the batch estimator around it."""
    return BatchKDE(kernel) if isinstance(kernel, Kernel) else kernel
