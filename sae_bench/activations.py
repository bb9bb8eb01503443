"""Activations: from pre-activations to codes. One small frozen object each.

An activation holds no tensors. Those it needs (a threshold) it declares in `parameters`; the SAE
owns them and hands them back as `own`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.components import Component
from sae_bench.errors import InputError
from sae_bench.estimator import Estimator
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

    def parameters(self, d_sae: int) -> dict[str, Float[Tensor, " d_sae"]]:
        """Initial values of the trainable tensors that this activation adds to the SAE."""
        return {}

    def threshold(self, own: Mapping[str, Tensor]) -> Float[Tensor, " d_sae"] | None:
        """The per-latent threshold in units of pre, or None where there is none."""
        return None

    def __call__(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """Codes and step of one batch."""
        raise NotImplementedError

    def project_(self, own: Mapping[str, Tensor]) -> None:
        """Brings the tensors back into their domain after an update, in place."""

    def fold_(self, own: Mapping[str, Tensor], s: float) -> None:
        """Rescales the tensors, in place, for pre-activations multiplied by `s`."""

    def objection_to_step(self, estimator: Estimator) -> str | None:
        """Why a penalty on the step function has no gradient here, or None if it has one."""
        return None


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


@dataclass(frozen=True)
class ThresholdForm(Component):
    """How a threshold is parametrised, and where it starts (in units of pre).

    Raises:
        InputError: the start is not a positive number (>= 0 for a raw threshold).
    """

    start: float = 1e-3

    units: ClassVar = {"start": 1}
    name: ClassVar[str]

    def initial(self, d_sae: int) -> Float[Tensor, " d_sae"]:
        """Value of the parameter at the start, float32 whatever the default dtype."""
        raise NotImplementedError

    def value(self, parameter: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """The threshold theta."""
        raise NotImplementedError

    def project_(self, parameter: Float[Tensor, " d_sae"]) -> None:
        """Keeps theta >= 0, in place."""

    def fold_(self, parameter: Float[Tensor, " d_sae"], s: float) -> None:
        """Multiplies theta by `s`, in place."""
        raise NotImplementedError


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


@dataclass(frozen=True)
class TopK(Activation):
    """Keeps the k largest pre-activations of each token, then ReLU (arXiv 2406.04093).

    Raises:
        InputError: k is no positive integer; k > d_sae when an SAE is built.
    """

    k: int = 64

    def __post_init__(self) -> None:
        if not (isinstance(self.k, int) and self.k >= 1):
            raise InputError(f"TopK: k must be a positive integer, got {self.k}")

    def parameters(self, d_sae: int) -> dict[str, Float[Tensor, " d_sae"]]:
        """None; checks that k latents exist."""
        if self.k > d_sae:
            raise InputError(
                f"TopK: k = {self.k} is larger than d_sae = {d_sae}; lower k or raise d_sae"
            )
        return {}

    def __call__(
        self, pre: Float[Tensor, "batch d_sae"], own: Mapping[str, Tensor], estimator: Estimator
    ) -> Latents:
        """The k largest of each row; a kept value that is not positive counts as off."""
        values, index = pre.topk(self.k, dim=-1, sorted=False)
        f = torch.zeros_like(pre).scatter(-1, index, values.relu())
        return Latents(pre, f, (f > 0).to(pre.dtype))

    def objection_to_step(self, estimator: Estimator) -> str | None:
        """L0 is k by construction."""
        return "TopK fixes L0 by construction: a penalty on L0 has no gradient"
