"""The interface of estimators of the gradient with respect to thresholds.

All estimate dE[L]/dtheta_i = p_i(theta_i) E[J_i | pre_i = theta_i] from samples near the threshold:
a kernel gives the density, a coefficient says what a sample contributes (`samples`). They differ in
what they remember of past batches. An estimator holds no tensors: its state is a dictionary that
goes in and comes out, lives in the SAE's buffers, and advances once an optimiser step.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.components import Component, label_of
from sae_bench.errors import InputError
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.samples import (
    Batch,
    Coefficient,
    Present,
    Samples,
    StraightThrough,
)
from sae_bench.support import Thinning

State = Mapping[str, Tensor]
Bandwidth = float | Float[Tensor, " d_sae"]
Estimate = tuple[Float[Tensor, " d_sae"], dict[str, Tensor]]
"""The gradient of the mean loss with respect to theta, and the next state."""


@dataclass(frozen=True)
class Estimator(Component):
    """One object decides the pseudo-derivative of the jump, for activation and penalty alike."""

    @property
    @abstractmethod
    def kernel(self) -> Kernel:
        """The window around the threshold, as the backward pass through the jump sees it."""

    @property
    @abstractmethod
    def to_input(self) -> bool:
        """Whether the pseudo-derivative also reaches the pre-activations."""

    @property
    def is_backward(self) -> bool:
        """Whether the gradient is the one that `loss.total.backward()` leaves in the threshold, so
        that `estimate` need not be called."""
        return False

    @property
    def most_samples(self) -> Thinning | None:
        """How many samples of each latent it takes in a step, by how many each has: the first ones
        stand for all (`Samples.weight`). None: it takes all."""
        return None

    def init(self, d_sae: int) -> dict[str, Tensor]:
        """The state before the first step."""
        return {}

    @abstractmethod
    def reach(self, state: State, bandwidth: Bandwidth | None = None) -> Bandwidth:
        """Distance from the threshold within which samples are needed, in units of pre.

        Args:
            state: as left by the step before.
            bandwidth: as in `estimate`.
        """

    @abstractmethod
    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """The gradient of the mean loss with respect to theta, and the next state.

        Args:
            state: as left by the step before.
            batch: this step's samples, and the SAE that they belong to.
            bandwidth: replaces the kernel's own, one value or one a latent.
        """


@dataclass(frozen=True)
class KernelEstimator(Estimator):
    """An estimator around a kernel.

    Args:
        kernel: window around the threshold.
        to_input: also pass the pseudo-derivative to the pre-activations ("straight-through to the
            input"): dJumpReLU/dpre += (theta/eps) K and dH/dpre += (1/eps) K. Both or neither:
            with only the second the gradient can have the wrong sign. Gradients to the input are
            always those of the present batch.
        coefficient: what a sample contributes: `StraightThrough` or `ExactJump`.
    """

    kernel: Kernel = Rectangle()
    to_input: bool = field(default=False, kw_only=True)
    coefficient: Coefficient = field(default=StraightThrough(), kw_only=True)

    @property
    def label(self) -> str:
        """The class name, the kernel, and by name whatever differs from its default."""
        return self._named(self.kernel.label)

    @property
    def kind(self) -> str:
        """The label without the kernel's bandwidth."""
        return self._named(self.kernel.kind)

    def _named(self, kernel: str) -> str:
        changed = [
            f"{field.name}={label_of(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name != "kernel" and getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join([kernel, *changed])})"

    def reach(self, state: State, bandwidth: Bandwidth | None = None) -> Bandwidth:
        """The reach of the kernel."""
        return self.kernel.reach * self.width(bandwidth)

    def width(self, bandwidth: Bandwidth | None) -> Bandwidth:
        """The bandwidth given, or else the kernel's own."""
        return self.kernel.bandwidth if bandwidth is None else bandwidth

    def pull(
        self, samples: Samples, present: Present, width: Bandwidth
    ) -> Float[Tensor, " *shape"]:
        """weight * coefficient * K(u) / eps of every sample; the values of `present` and `width`
        broadcast against those of the samples."""
        kernel = self.kernel.density((samples.pre - present.theta) / width)
        return samples.weight * self.coefficient(samples, present) * kernel / width

    def density(self, batch: Batch, bandwidth: Bandwidth | None) -> Float[Tensor, " d_sae"]:
        """The sum of the pulls of each latent's samples, a token: the estimate of this batch."""
        samples, present, tokens = batch
        latent = samples.latent
        pull = self.pull(samples, present.at(latent), at(self.width(bandwidth), latent))
        return torch.zeros_like(present.theta).index_add_(0, latent, pull) / tokens


def at(width: Bandwidth, latent: Int[Tensor, " samples"]) -> float | Float[Tensor, " samples"]:
    """The width that belongs to each sample."""
    return width.index_select(0, latent) if isinstance(width, Tensor) else width


@dataclass(frozen=True)
class Remembering(KernelEstimator):
    """An estimator that looks back over about `steps` optimiser steps."""

    steps: int = 8

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"{type(self).__name__}: steps must be at least 1, got {self.steps}")
