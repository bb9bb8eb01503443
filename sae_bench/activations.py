"""Activations: from pre-activations to codes. One small frozen object each.

An activation holds no tensors. Those it needs (a threshold) it declares in `parameters` if they are
trained and in `buffers` if they are observed; the SAE owns them and hands them back as `own`.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.components import Component
from sae_bench.errors import InputError
from sae_bench.estimator import Estimator
from sae_bench.plain import Plain, PlainBatchTopK, PlainJumpReLU, PlainReLU, PlainTopK
from sae_bench.selection import largest_of_all, largest_of_each
from sae_bench.surrogate import jump


class Latents(NamedTuple):
    """What one batch looks like between encoder and decoder.

    pre: pre-activations; f: codes, what the decoder consumes; step: 1 where the latent is on, with
    the pseudo-gradient of the estimator where the activation has one.
    """

    pre: Float[Tensor, "batch d_sae"]
    f: Float[Tensor, "batch d_sae"]
    step: Float[Tensor, "batch d_sae"]


@dataclass(frozen=True)
class Activation(Component):
    """Base of all activations."""

    trains_threshold: ClassVar[bool] = False
    """Whether `threshold` depends on trained parameters: an estimator then gives their gradient."""

    def parameters(self, d_sae: int) -> dict[str, Float[Tensor, " d_sae"]]:
        """Initial values of the trainable tensors that this activation adds to the SAE."""
        return {}

    def buffers(self, d_sae: int) -> dict[str, Tensor]:
        """Initial values of the tensors that `observe` moves: part of the SAE, without gradient."""
        return {}

    def threshold(
        self, own: Mapping[str, Tensor]
    ) -> Float[Tensor, " d_sae"] | Float[Tensor, ""] | None:
        """The threshold in units of pre, one a latent or one for all; None where there is none."""
        return None

    @abstractmethod
    def __call__(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """Codes and step of one training batch."""

    def infer(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """Codes and step in evaluation; those of training unless an activation says otherwise."""
        return self(pre, own, estimator)

    def observe(self, latents: Latents, own: Mapping[str, Tensor]) -> None:
        """Advances the buffers, in place, after a training step on a batch with these latents."""

    def project_(self, own: Mapping[str, Tensor]) -> None:
        """Brings the tensors back into their domain after an update, in place."""

    def fold_(self, own: Mapping[str, Tensor], s: float) -> None:
        """Rescales the tensors, in place, for pre-activations multiplied by `s`."""

    def at_l0(self, l0: float) -> "Activation | None":
        """The same activation with its own L0 set to `l0`, or None if it does not fix L0."""
        return None

    def objection_to_step(self, estimator: Estimator) -> str | None:
        """Why a penalty on the step function has no gradient here, or None if it has one."""
        return None

    def objection_to_estimator(self, estimator: Estimator, through_step: bool) -> str | None:
        """Why the estimator changes nothing here against the plain batch estimate, or None.

        Args:
            estimator: of the arm.
            through_step: whether the penalty sends a gradient through the step.
        """
        if self.trains_threshold or estimator.is_backward:
            return None
        return (
            f"{type(self).__name__} trains no threshold: state and exact-jump coefficients change "
            "nothing, use BatchKDE"
        )

    def plain(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Plain:
        """What an SAE with these weights (W_enc, b_enc, W_dec, b_dec) and this activation computes
        in evaluation.

        Raises:
            InputError: nothing that other libraries know.
        """
        raise InputError(
            f"{type(self).__name__} is unknown to other libraries: define its method `plain`"
        )


@dataclass(frozen=True)
class ReLU(Activation):
    """f = max(pre, 0)."""

    def __call__(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """JumpReLU with its threshold fixed at 0."""
        return Latents(pre, *jump(pre, pre.new_zeros(()), estimator))

    def objection_to_step(self, estimator: Estimator) -> str | None:
        """Without a threshold, only a straight-through gradient to the input is left."""
        if estimator.to_input:
            return None
        return "ReLU has no threshold: a penalty on L0 needs an estimator with to_input=True"

    def objection_to_estimator(self, estimator: Estimator, through_step: bool) -> str | None:
        """At 0 the code does not jump: to_input changes nothing but the step's gradient."""
        if estimator.to_input and not through_step:
            return "ReLU has no threshold: to_input=True changes nothing without a penalty on L0"
        return super().objection_to_estimator(estimator, through_step)

    def plain(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Plain:
        """A ReLU SAE."""
        return PlainReLU(**weights)


@dataclass(frozen=True)
class ThresholdForm(Component):
    """How a threshold is parametrised, and where it starts (in units of pre).

    Raises:
        InputError: the start is not a positive number (>= 0 for a raw threshold).
    """

    start: float = 1e-3

    units: ClassVar = {"start": 1}
    name: ClassVar[str]

    @abstractmethod
    def initial(self, d_sae: int) -> Float[Tensor, " d_sae"]:
        """Value of the parameter at the start, float32 whatever the default dtype."""

    @abstractmethod
    def value(self, parameter: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """The threshold theta."""

    def project_(self, parameter: Float[Tensor, " d_sae"]) -> None:
        """Keeps theta >= 0, in place."""

    @abstractmethod
    def fold_(self, parameter: Float[Tensor, " d_sae"], s: float) -> None:
        """Multiplies theta by `s`, in place."""


@dataclass(frozen=True)
class RawThreshold(ThresholdForm):
    """theta is the parameter itself, kept >= 0 by clamping its data after each update."""

    name = "raw_threshold"

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise InputError(f"RawThreshold: start must be a number >= 0, got {self.start}")

    def initial(self, d_sae: int) -> Float[Tensor, " d_sae"]:
        """theta_0 everywhere."""
        return torch.full((d_sae,), self.start, dtype=torch.float32)

    def value(self, parameter: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """The identity."""
        return parameter

    def project_(self, parameter: Float[Tensor, " d_sae"]) -> None:
        """max(theta, 0), in place."""
        parameter.clamp_(min=0)

    def fold_(self, parameter: Float[Tensor, " d_sae"], s: float) -> None:
        """theta * s."""
        parameter.mul_(s)


@dataclass(frozen=True)
class LogThreshold(ThresholdForm):
    """theta = exp(parameter): positive by form (arXiv 2407.14435). Under Adam a step moves theta
    by about theta * lr, so in short runs it needs a learning rate of its own."""

    name = "log_threshold"

    def __post_init__(self) -> None:
        if not 0 < self.start < math.inf:
            raise InputError(f"LogThreshold: start must be a positive number, got {self.start}")

    def initial(self, d_sae: int) -> Float[Tensor, " d_sae"]:
        """log theta_0 everywhere."""
        return torch.full((d_sae,), self.start, dtype=torch.float32).log()

    def value(self, parameter: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """exp(parameter); autograd supplies the chain factor theta."""
        return parameter.exp()

    def fold_(self, parameter: Float[Tensor, " d_sae"], s: float) -> None:
        """log theta + log s."""
        parameter.add_(math.log(s))


@dataclass(frozen=True)
class JumpReLU(Activation):
    """f = pre * 1[pre > theta], one trainable threshold a latent (arXiv 2407.14435, equation 3)."""

    form: ThresholdForm = LogThreshold()

    trains_threshold = True

    def parameters(self, d_sae: int) -> dict[str, Float[Tensor, " d_sae"]]:
        """The threshold's parameter, under its form's name."""
        return {self.form.name: self.form.initial(d_sae)}

    def threshold(self, own: Mapping[str, Tensor]) -> Float[Tensor, " d_sae"]:
        """theta, in units of pre."""
        return self.form.value(own[self.form.name])

    def __call__(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """The jump at theta."""
        return Latents(pre, *jump(pre, self.threshold(own), estimator))

    def project_(self, own: Mapping[str, Tensor]) -> None:
        """Keeps theta >= 0."""
        self.form.project_(own[self.form.name])

    def fold_(self, own: Mapping[str, Tensor], s: float) -> None:
        """theta * s."""
        self.form.fold_(own[self.form.name], s)

    def plain(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Plain:
        """A JumpReLU SAE."""
        return PlainJumpReLU(**weights, threshold=self.threshold(own))


@dataclass(frozen=True)
class FixedL0(Activation):
    """Base of activations whose L0 is given, not learnt: k latents for each token or on average.

    Raises:
        InputError: k is not positive; k > d_sae when an SAE is built.
    """

    k: int = 64

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"{type(self).__name__}: k must be positive, got {self.k}")

    def parameters(self, d_sae: int) -> dict[str, Float[Tensor, " d_sae"]]:
        """None; checks that k latents exist."""
        if self.k > d_sae:
            raise InputError(
                f"{type(self).__name__}: k = {self.k} is larger than d_sae = {d_sae}; "
                "lower k or raise d_sae"
            )
        return {}

    def at_l0(self, l0: float) -> Self:
        """k = l0, rounded."""
        return self.replace(k=round(l0))

    def objection_to_step(self, estimator: Estimator) -> str | None:
        """L0 is k by construction."""
        name = type(self).__name__
        return f"{name} fixes L0 by construction: a penalty on L0 has no gradient"

    def objection_to_estimator(self, estimator: Estimator, through_step: bool) -> str | None:
        """The step has no pseudo-derivative."""
        if estimator.to_input:
            return f"{type(self).__name__} has no pseudo-derivative: to_input=True changes nothing"
        return super().objection_to_estimator(estimator, through_step)


@dataclass(frozen=True)
class TopK(FixedL0):
    """Keeps the k largest pre-activations of each token, then ReLU (arXiv 2406.04093)."""

    def __call__(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """The k largest of each row; a kept value that is not positive counts as off."""
        f = largest_of_each(pre, self.k)
        return Latents(pre, f, (f > 0).to(pre.dtype))

    def plain(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Plain:
        """A TopK SAE."""
        return PlainTopK(**weights, k=self.k)


@dataclass(frozen=True)
class BatchTopK(FixedL0):
    """ReLU, then keeps the k * batch largest values of the batch: k latents a token on average
    (arXiv 2412.06410).

    In evaluation f = pre * 1[pre > theta], so that a token's codes do not depend on its batch.
    theta is one number for all latents: the running mean over training batches, bias-corrected, of
    the smallest positive value that was kept. Before the first batch it is 0 (plain ReLU).

    Args:
        k: mean number of latents of a token.
        decay: of the running mean, per training batch. A run of fewer than 1 / (1 - decay) batches
            averages over all of them, its first ones included.

    Raises:
        InputError: decay is not in [0, 1).
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise InputError(f"BatchTopK: decay must be at least 0 and below 1, got {self.decay}")

    def buffers(self, d_sae: int) -> dict[str, Tensor]:
        """The uncorrected running mean, and the weight that it has gathered: 1 - decay^batches."""
        return {"running_threshold": torch.zeros(()), "running_weight": torch.zeros(())}

    def threshold(self, own: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """theta in evaluation."""
        weight = own["running_weight"]
        return own["running_threshold"] / weight.where(weight > 0, 1)

    def __call__(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """The k * batch largest of the batch."""
        f = largest_of_all(pre, self.k * len(pre))
        return Latents(pre, f, (f > 0).to(pre.dtype))

    def infer(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """The jump at theta, which gets no gradient."""
        step = (pre > self.threshold(own)).to(pre.dtype)
        return Latents(pre, pre * step, step)

    def observe(self, latents: Latents, own: Mapping[str, Tensor]) -> None:
        """One step of the running mean; a batch in which nothing is on changes nothing."""
        smallest = latents.f.masked_fill(latents.f <= 0, math.inf).amin()
        for name, value in (
            ("running_threshold", smallest),
            ("running_weight", torch.ones_like(smallest)),
        ):
            moved = torch.lerp(value, own[name], self.decay)
            own[name].copy_(torch.where(smallest.isfinite(), moved, own[name]))

    def fold_(self, own: Mapping[str, Tensor], s: float) -> None:
        """theta * s."""
        own["running_threshold"].mul_(s)

    def plain(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Plain:
        """A JumpReLU SAE with one threshold."""
        threshold = self.threshold(own).expand_as(weights["b_enc"])
        return PlainBatchTopK(**weights, threshold=threshold, k=self.k)
