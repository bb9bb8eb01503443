"""Samples near thresholds, and what each says about the threshold's gradient.

A sample is one token for one latent whose pre-activation lies near the latent's threshold. It keeps
only what does not go stale when thresholds, penalty coefficients or on/off states change later:
never the coefficient itself, which would bake in all three.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.components import Component
from sae_bench.ranks import near


class Charge(Protocol):
    """The part of a penalty that samples need; coefficients are applied by `Present.scale`."""

    @property
    def step_curvature(self) -> float:
        """Second derivative of the unit-coefficient penalty of a token in one of its steps."""
        ...

    def slope(self, f: Tensor, norms: Tensor) -> Tensor:
        """Derivative of the unit-coefficient penalty with respect to a code f, elementwise."""
        ...

    def jump(self, theta: Tensor, norms: Tensor) -> Tensor:
        """Its change when a code goes from 0 to theta, elementwise, steps aside."""
        ...


class Samples(NamedTuple):
    """One entry a sample; all arrays have one shape (`latent` broadcasts to it).

    latent: which latent. pre: its pre-activation. projection: e = d.(x - x_hat) + f ||d||^2, the
    projection of the leave-one-out residual on the decoder row. step_slope: derivative of the
    unit-coefficient penalty with respect to the step, leave-one-out. weight: tokens that the entry
    stands for (0: an empty slot).
    """

    latent: Int[Tensor, " *#shape"]
    pre: Float[Tensor, " *shape"]
    projection: Float[Tensor, " *shape"]
    step_slope: Float[Tensor, " *shape"]
    weight: Float[Tensor, " *shape"]

    def at(self, chosen: Int[Tensor, " chosen"]) -> "Samples":
        """Those with these indices."""
        return Samples(*(column.index_select(0, chosen) for column in self))

    def within(
        self, theta: Float[Tensor, " d_sae"], half: float | Float[Tensor, " d_sae"]
    ) -> "Samples":
        """Those with |pre - theta| <= half."""
        limit = half if isinstance(half, Tensor) else torch.full_like(theta, half)
        return self.at(near(self.latent, self.pre, theta, limit))

    @classmethod
    def joined(cls, parts: "Iterable[Samples]") -> "Samples":
        """One after the other."""
        latent, *columns = map(torch.cat, zip(*parts, strict=True))
        return cls(latent.long(), *columns)

    def first(
        self, most: int, rank: Int[Tensor, " samples"], count: Int[Tensor, " d_sae"]
    ) -> "Samples":
        """The first `most` of each latent, standing for all.

        Args:
            most: samples kept of a latent.
            rank: earlier samples of the same latent.
            count: samples that each latent's stand for.
        """
        kept = self.at((rank < most).nonzero().squeeze(1))
        scale = (count / most).clamp(min=1)[kept.latent].to(kept.weight.dtype)
        return kept._replace(weight=kept.weight * scale)


class Present(NamedTuple):
    """The state of the SAE in which samples are judged: one value a latent or, `at` samples, one
    value a sample.

    theta: threshold. norms: ||d||. curvature: ||d||^2 times the number of reconstruction terms
    that the latent takes part in. penalty and scale: the penalty and its coefficient now.
    """

    theta: Float[Tensor, " *shape"]
    norms: Float[Tensor, " *shape"]
    curvature: Float[Tensor, " *shape"]
    penalty: Charge
    scale: float

    def at(self, latent: Int[Tensor, " samples"]) -> "Present":
        """The values of the latents that samples belong to."""
        theta, norms, curvature = (values.index_select(0, latent) for values in self[:3])
        return Present(theta, norms, curvature, self.penalty, self.scale)


class Batch(NamedTuple):
    """What an estimator is given at one optimiser step.

    samples: of this batch, at least those within the estimator's `reach` of their threshold; if it
    has a limit (`most_samples`), the first of each latent, with weights that make up for the rest.
    present: thresholds, decoder and penalty now. tokens: size of the batch that the samples were
    taken from.
    """

    samples: Samples
    present: Present
    tokens: int


@dataclass(frozen=True)
class Coefficient(Component):
    """What a sample at the threshold contributes: dL/dtheta = sum coefficient K(u) / (N eps)."""

    @abstractmethod
    def __call__(self, samples: Samples, present: Present) -> Float[Tensor, " *shape"]:
        """The coefficient of every sample, in units of the loss.

        Args:
            samples: near thresholds.
            present: its values broadcast against those of the samples.
        """


@dataclass(frozen=True)
class StraightThrough(Coefficient):
    """-(theta g_f + g_H) of arXiv 2407.14435, re-evaluated at the present state.

    With f = pre 1[pre > theta]: 2 theta (e - f ||d||^2) - lambda (theta slope(f) + step slope). It
    flips by 2 theta^2 ||d||^2 as a sample crosses the threshold, so the estimator's bias is of
    first order in the bandwidth.
    """

    def __call__(self, samples: Samples, present: Present) -> Float[Tensor, " *shape"]:
        """The coefficient of every sample."""
        theta = present.theta
        on = (samples.pre > theta).to(samples.pre.dtype)
        f = samples.pre * on
        residual = samples.projection - f * present.curvature
        step_slope = samples.step_slope + on * present.penalty.step_curvature
        charge = theta * present.penalty.slope(f, present.norms) + step_slope
        return 2 * theta * residual - present.scale * charge


@dataclass(frozen=True)
class ExactJump(Coefficient):
    """J = 2 theta e - theta^2 ||d||^2 - lambda (jump of the penalty): minus the difference
    of the loss between the latent being on (at f = theta) and off. The same on both sides of the
    threshold: bias of second order in the bandwidth, and the coin flip's noise is gone.
    """

    def __call__(self, samples: Samples, present: Present) -> Float[Tensor, " *shape"]:
        """The coefficient of every sample."""
        theta = present.theta
        gain = theta * (2 * samples.projection - theta * present.curvature)
        step_slope = samples.step_slope + present.penalty.step_curvature / 2
        return gain - present.scale * (present.penalty.jump(theta, present.norms) + step_slope)
