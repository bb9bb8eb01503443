"""Bandwidths that adapt to each latent and persist across steps, around any estimator."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.components import Component
from sae_bench.errors import InputError
from sae_bench.estimator import Bandwidth, Estimate, Estimator, KernelEstimator, State
from sae_bench.kernels import Kernel
from sae_bench.samples import Batch

NEAR = 3.0
"""The spread of pre-activations is measured within this many standard deviations of the window
(eps sqrt(mu2): in bandwidths, equal k would not lead to equal windows across kernels)."""


@dataclass(frozen=True)
class BandwidthRule(Component):
    """How a latent's next bandwidth follows from what was seen near its threshold.

    Raises:
        InputError: one of the `positive` fields is not a positive number.
    """

    positive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in self.positive:
            if not 0 < getattr(self, field) < math.inf:
                raise InputError(
                    f"{type(self).__name__}: {field} must be a positive number, "
                    f"got {getattr(self, field)}"
                )

    @abstractmethod
    def next(
        self,
        bandwidth: Float[Tensor, " d_sae"],
        spread: Float[Tensor, " d_sae"],
        near: Float[Tensor, " d_sae"],
        inside: Float[Tensor, " d_sae"],
        kernel: Kernel,
    ) -> Float[Tensor, " d_sae"]:
        """The bandwidth of the next step.

        Args:
            bandwidth: of this step.
            spread: running root mean square of pre - theta among near samples.
            near: running number of samples a step within NEAR standard deviations of the window.
            inside: running number of samples a step with K > 0.
            kernel: the kernel.
        """


@dataclass(frozen=True)
class SpreadRule(BandwidthRule):
    """eps_i = k sigma_i n_i^-rate / sqrt(mu2): equal k is equal window width whatever the kernel.

    Args:
        k: width of the window in spreads, for one sample.
        rate: 1/3 for straight-through coefficients (bias of order eps), 1/5 for exact jumps.
    """

    positive = ("k", "rate")

    k: float = 1.0
    rate: float = 1 / 3

    def next(
        self,
        bandwidth: Float[Tensor, " d_sae"],
        spread: Float[Tensor, " d_sae"],
        near: Float[Tensor, " d_sae"],
        inside: Float[Tensor, " d_sae"],
        kernel: Kernel,
    ) -> Float[Tensor, " d_sae"]:
        """k sigma n^-rate / sqrt(mu2); a latent without samples keeps its bandwidth."""
        width = self.k * spread * near.clamp(min=1) ** -self.rate / math.sqrt(kernel.variance)
        return torch.where(near > 0, width, bandwidth)


@dataclass(frozen=True)
class TargetCount(BandwidthRule):
    """eps_i <- eps_i (m / n_i)^eta, n_i the samples inside the window: steers each latent to `m`
    samples a step. At most a factor of 2 a step."""

    positive = ("m", "eta")

    m: float = 4.0
    eta: float = 0.1

    def next(
        self,
        bandwidth: Float[Tensor, " d_sae"],
        spread: Float[Tensor, " d_sae"],
        near: Float[Tensor, " d_sae"],
        inside: Float[Tensor, " d_sae"],
        kernel: Kernel,
    ) -> Float[Tensor, " d_sae"]:
        """eps (m / n)^eta."""
        return bandwidth * ((self.m / inside.clamp(min=1e-9)) ** self.eta).clamp(0.5, 2)


@dataclass(frozen=True)
class PersistentBandwidth(Estimator):
    """Any estimator with a bandwidth of its own for each latent, kept across steps.

    Args:
        inner: the estimator; its kernel's bandwidth is the start, its coefficient and `to_input`
            are used as they are (gradients to the input keep the start's bandwidth).
        rule: gives the next bandwidth.
        low, high: bounds, as factors of the start.
        decay: of the running spread and counts.
    """

    inner: KernelEstimator
    rule: BandwidthRule = SpreadRule()
    low: float = 0.1
    high: float = 10.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not (0 < self.low <= 1 <= self.high and 0 <= self.decay < 1):
            raise InputError(
                "PersistentBandwidth: 0 < low <= 1 <= high and 0 <= decay < 1 are needed, "
                f"got {self.low}, {self.high}, {self.decay}"
            )

    @property
    def kernel(self) -> Kernel:
        """The inner estimator's."""
        return self.inner.kernel

    @property
    def to_input(self) -> bool:
        """The inner estimator's."""
        return self.inner.to_input

    def init(self, d_sae: int) -> dict[str, Tensor]:
        """The start's bandwidth, nothing seen, and the inner estimator's state."""
        running = {name: torch.zeros(d_sae) for name in ("near", "inside", "squares")}
        inner = {f"inner_{name}": value for name, value in self.inner.init(d_sae).items()}
        start = torch.full((d_sae,), self.kernel.bandwidth)
        return {"bandwidth": start, "seen": torch.zeros(()), **running, **inner}

    @property
    def near(self) -> float:
        """Largest |u| of the samples that the spread is measured on."""
        return NEAR * math.sqrt(self.kernel.variance)

    def reach(self, state: State, bandwidth: Bandwidth | None = None) -> Bandwidth:
        """What the inner estimator needs at these bandwidths, or the spread."""
        width = state["bandwidth"]
        inner = torch.as_tensor(self.inner.reach(_inner(state), width))
        return torch.maximum(inner, self.near * width)

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """The inner estimate at this step's bandwidths; then the rule gives the next ones."""
        samples, present, _ = batch
        width = state["bandwidth"]
        gradient, inner = self.inner.estimate(_inner(state), batch, width)
        theta, own = (each.index_select(0, samples.latent) for each in (present.theta, width))
        distance = samples.pre - theta
        u = (distance / own).abs()
        seen = {
            "near": samples.weight * (u < self.near),
            "inside": samples.weight * (u < self.kernel.reach),
            "squares": samples.weight * (u < self.near) * distance.square(),
        }
        running = {
            name: self.decay * state[name]
            + (1 - self.decay) * torch.zeros_like(width).index_add_(0, samples.latent, value)
            for name, value in seen.items()
        }
        weight = self.decay * state["seen"] + (1 - self.decay)
        near, inside = running["near"] / weight, running["inside"] / weight
        spread = (running["squares"] / running["near"].clamp(min=1e-12)).sqrt()
        start = self.kernel.bandwidth
        following = self.rule.next(width, spread, near, inside, self.kernel)
        following = following.clamp(self.low * start, self.high * start)
        kept = {f"inner_{name}": value for name, value in inner.items()}
        return gradient, {"bandwidth": following, "seen": weight, **running, **kept}


def _inner(state: State) -> dict[str, Tensor]:
    return {
        name.removeprefix("inner_"): value
        for name, value in state.items()
        if name.startswith("inner_")
    }
