"""Sparsity penalties. Each carries its coefficient; its value is a mean over the batch.

Units: training normalises activations to E||x||^2 = 1, and coefficients belong to those units.
`sum` below runs over latents, d_i is row i of W_dec.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.activations import Latents
from sae_bench.components import Component
from sae_bench.errors import InputError


@dataclass(frozen=True)
class Penalty(Component):
    """Base of all penalties: `coefficient` times `value`.

    Raises:
        InputError: the coefficient is negative, another field not positive.
    """

    coefficient: float

    through_step: ClassVar[bool] = False
    """Whether the gradient arrives through the step function (and so needs a pseudo-derivative)."""

    needs_fixed_norms: ClassVar[bool] = False
    """Whether it charges codes whatever the norms of their decoder rows: rows that are free then
    grow while codes shrink, at no cost."""

    positive: ClassVar[tuple[str, ...]] = ()
    """Fields that must be positive numbers."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 <= self.coefficient < math.inf:
            raise InputError(
                f"{name}: the coefficient must be a number >= 0, got {self.coefficient}"
            )
        for field in self.positive:
            if not 0 < getattr(self, field) < math.inf:
                raise InputError(
                    f"{name}: {field} must be a positive number, got {getattr(self, field)}"
                )

    @abstractmethod
    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """The penalty with coefficient 1: a scalar, averaged over the batch."""

    def __call__(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """coefficient * value."""
        return self.coefficient * self.value(latents, W_dec)

    def at_l0(self, l0: float) -> "Penalty | None":
        """The same penalty with its target set to `l0`, or None if it has no target."""
        return None

    # What estimators other than the plain batch one need to know (see `samples`).

    @property
    def step_curvature(self) -> float:
        """Second derivative of a token's unit-coefficient penalty with respect to one of its steps:
        0 for penalties linear in the steps of a token."""
        return 0.0

    def slope(
        self, f: Float[Tensor, " *shape"], norms: Float[Tensor, " *#shape"]
    ) -> Float[Tensor, " *#shape"]:
        """Derivative of a token's unit-coefficient penalty with respect to a code f of a latent
        with decoder norm `norms` (which broadcasts against f), steps aside.

        Only penalties that are sums over codes have one. Others leave it undefined, and `jump` too.
        """
        raise InputError(f"{type(self).__name__}: {self.objection_to_samples()}")

    def jump(
        self, theta: Float[Tensor, " *shape"], norms: Float[Tensor, " *shape"]
    ) -> Float[Tensor, " *shape"]:
        """Change of a token's unit-coefficient penalty when a code goes from 0 to theta, steps
        aside: the integral of `slope`."""
        raise InputError(f"{type(self).__name__}: {self.objection_to_samples()}")

    @classmethod
    def defines(cls, name: str) -> bool:
        """Whether a method is the subclass's own."""
        return getattr(cls, name) is not getattr(Penalty, name)

    def objection_to_samples(self) -> str | None:
        """Why only autograd can charge it, which looks at whole batches and not at single samples;
        or None."""
        missing = [name for name in ("slope", "jump") if not self.defines(name)]
        if not missing:
            return None
        return (
            f"{type(self).__name__} defines no {' and no '.join(missing)}: thresholds can be "
            "trained by BatchKDE with straight-through coefficients only"
        )

    @torch.enable_grad()
    def step_slope(
        self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]
    ) -> Float[Tensor, "batch d_sae"]:
        """Derivative of the unit-coefficient penalty of a token (batch size times the batch mean)
        with respect to each step."""
        step = latents.step.detach().requires_grad_()
        if not self.through_step:
            return torch.zeros((), dtype=step.dtype, device=step.device).expand_as(step)
        value = self.value(Latents(latents.pre.detach(), latents.f.detach(), step), W_dec.detach())
        return torch.autograd.grad(len(step) * value, step)[0]


@dataclass(frozen=True)
class FreeCodes(Penalty):
    """Base of penalties that charge no codes: at most steps."""

    def slope(
        self, f: Float[Tensor, " *shape"], norms: Float[Tensor, " *#shape"]
    ) -> Float[Tensor, " *#shape"]:
        """0."""
        return torch.zeros_like(f)

    def jump(
        self, theta: Float[Tensor, " *shape"], norms: Float[Tensor, " *shape"]
    ) -> Float[Tensor, " *shape"]:
        """0."""
        return torch.zeros_like(theta)


@dataclass(frozen=True)
class NoPenalty(FreeCodes):
    """For activations that fix their own sparsity."""

    coefficient: float = 0.0

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """Zero."""
        return latents.f.new_zeros(())


@dataclass(frozen=True)
class L1(Penalty):
    """sum f_i, for decoders with rows of unit norm."""

    units: ClassVar = {"coefficient": 1}
    needs_fixed_norms = True

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """Mean over the batch of sum f_i."""
        return latents.f.sum() / len(latents.f)

    def slope(
        self, f: Float[Tensor, " *shape"], norms: Float[Tensor, " *#shape"]
    ) -> Float[Tensor, " *#shape"]:
        """1."""
        return torch.ones_like(f)

    def jump(
        self, theta: Float[Tensor, " *shape"], norms: Float[Tensor, " *shape"]
    ) -> Float[Tensor, " *shape"]:
        """theta."""
        return theta


@dataclass(frozen=True)
class RIL1(Penalty):
    """sum f_i ||d_i||: reparametrisation-invariant L1, for decoders with free rows
    (Anthropic, April 2024 update; arXiv 2407.14435, p. 16)."""

    units: ClassVar = {"coefficient": 1}

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """Mean over the batch of sum f_i ||d_i||."""
        return (latents.f.sum(0) * W_dec.norm(dim=1)).sum() / len(latents.f)

    def slope(
        self, f: Float[Tensor, " *shape"], norms: Float[Tensor, " *#shape"]
    ) -> Float[Tensor, " *#shape"]:
        """||d_i||."""
        return norms

    def jump(
        self, theta: Float[Tensor, " *shape"], norms: Float[Tensor, " *shape"]
    ) -> Float[Tensor, " *shape"]:
        """theta ||d_i||."""
        return theta * norms


@dataclass(frozen=True)
class L0(FreeCodes):
    """sum H(pre_i - theta_i), straight-through (arXiv 2407.14435, equation 9)."""

    units: ClassVar = {"coefficient": 2}
    through_step = True

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """Mean L0 of the batch."""
        return latents.step.sum() / len(latents.step)


@dataclass(frozen=True)
class TargetL0(FreeCodes):
    """(L0 / target - 1)^2 for each token (arXiv 2407.14435, appendix F)."""

    coefficient: float = 1.0
    target: float = 64.0

    units: ClassVar = {"coefficient": 2}
    positive = ("target",)
    through_step = True

    def at_l0(self, l0: float) -> "Penalty":
        """target = l0."""
        return self.replace(target=float(l0))

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """Mean over the batch of (L0 / target - 1)^2."""
        return (latents.step.sum(-1) / self.target - 1).square().mean()

    @property
    def step_curvature(self) -> float:
        """2 / target^2."""
        return 2 / self.target**2


@dataclass(frozen=True)
class TargetMeanL0(FreeCodes):
    """(mean L0 / target - 1)^2: leaves tokens free to differ; smaller than `TargetL0` by
    Var(L0) / target^2."""

    coefficient: float = 1.0
    target: float = 64.0

    units: ClassVar = {"coefficient": 2}
    positive = ("target",)
    through_step = True

    def at_l0(self, l0: float) -> "Penalty":
        """target = l0."""
        return self.replace(target=float(l0))

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """(mean over the batch of L0 / target - 1)^2."""
        return (latents.step.sum(-1).mean() / self.target - 1).square()


@dataclass(frozen=True)
class Tanh(Penalty):
    """sum tanh(c f_i ||d_i||) (Anthropic, January 2025 update). The published c = 4 belongs to
    E||x|| = sqrt(d_in); for E||x||^2 = 1 that is c = 4 sqrt(d_in)."""

    c: float = 96.0

    units: ClassVar = {"coefficient": 2, "c": -1}
    positive = ("c",)

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """Mean over the batch of sum tanh(c f_i ||d_i||)."""
        return (self.c * latents.f * W_dec.norm(dim=1)).tanh().sum() / len(latents.f)

    def slope(
        self, f: Float[Tensor, " *shape"], norms: Float[Tensor, " *#shape"]
    ) -> Float[Tensor, " *#shape"]:
        """c ||d_i|| / cosh(c f_i ||d_i||)^2."""
        return self.c * norms * (1 - (self.c * f * norms).tanh().square())

    def jump(
        self, theta: Float[Tensor, " *shape"], norms: Float[Tensor, " *shape"]
    ) -> Float[Tensor, " *shape"]:
        """tanh(c theta ||d_i||)."""
        return (self.c * theta * norms).tanh()


@dataclass(frozen=True)
class QuadraticFrequency(FreeCodes):
    """sum p_i (1 + p_i / w), p_i the firing rate over the batch: charges frequent latents more
    (arXiv 2407.14435, discussion)."""

    w: float = 0.1

    units: ClassVar = {"coefficient": 2}
    positive = ("w",)
    through_step = True

    def value(self, latents: Latents, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
        """sum p_i (1 + p_i / w)."""
        p = latents.step.mean(0)
        return (p * (1 + p / self.w)).sum()
