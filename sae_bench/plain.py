"""Plain SAEs: what a trained SAE computes, whatever it is called and however it was trained.

Nearly every SAE that is published computes one of four things between x and its codes. A plain SAE
holds the weights of one of them, in this library's convention: b_dec is subtracted from the input.
Plain SAEs are what formats read and write, and what conversions between architectures act on.
"""

import dataclasses
from dataclasses import dataclass
from typing import NoReturn, Self

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.errors import InputError, counted


@dataclass(frozen=True, eq=False)
class Plain:
    """pre = (x - b_dec) W_enc + b ; f = codes of pre ; x_hat = f W_dec + b_dec."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    @property
    def fault(self) -> str | None:
        """Why no library computes anything sensible from these numbers, or None if all can."""
        finite = {name: tensor.isfinite() for name, tensor in self.tensors.items()}
        if not finite.pop("b_dec").all():
            return "its b_dec is not finite"
        along = {"W_enc": 0, "W_dec": 1}
        for name, each in finite.items():
            of_latents = each.all(along[name]) if name in along else each
            if reason := _for_some(of_latents, f"its {name} is not finite"):
                return reason
        return _for_some((self.b_dec @ self.W_enc).isfinite(), "its b_dec W_enc is not finite")

    @property
    def misfit(self) -> str | None:
        """Which tensor is no real one, or does not go with W_enc; or None."""
        shapes: dict[str, tuple[int, ...]] = {"b_dec": (self.d_in,)}
        shapes |= {"W_enc": (self.d_in, self.d_sae), "W_dec": (self.d_sae, self.d_in)}
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                return f"its {name} is {tensor.dtype}, expected floating point"
            if tensor.shape != (shape := shapes.get(name, (self.d_sae,))):
                return f"its {name} has shape {tuple(tensor.shape)}, expected {shape} as for W_enc"
        return None

    def checked(self) -> Self:
        """Itself, if all libraries can compute with its numbers.

        Raises:
            InputError: numbers that are not finite, or not in the range that they need.
        """
        if self.fault:
            raise InputError(self.fault)
        return self

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """The codes f."""
        raise NotImplementedError

    def decode(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """x_hat = f W_dec + b_dec."""
        return f @ self.W_dec + self.b_dec

    def as_jumprelu(self) -> "PlainJumpReLU":
        """The JumpReLU SAE with the same codes.

        Raises:
            InputError: there is none.
        """
        _no_equal(self, "JumpReLU")

    def as_gated(self) -> "PlainGated":
        """The Gated SAE with the same codes: W_gate = W_enc, r_mag = 0, b_mag = b_enc,
        b_gate = b_enc - theta of the equal JumpReLU SAE (arXiv 2404.16014, read backwards).

        Raises:
            InputError: there is none.
        """
        equal = self.as_jumprelu()
        return PlainGated(
            equal.W_enc,
            equal.W_dec,
            equal.b_dec,
            b_gate=equal.b_enc - equal.threshold,
            b_mag=equal.b_enc,
            r_mag=torch.zeros_like(equal.b_enc),
        )


@dataclass(frozen=True, eq=False)
class _Biased(Plain):
    """With one bias a latent."""

    b_enc: Float[Tensor, " d_sae"]

    def pre(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """The pre-activations."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    @property
    def b_enc_of_x(self) -> Float[Tensor, " d_sae"]:
        """b_enc - b_dec W_enc: the bias for implementations that do not subtract b_dec from x. In
        float64 on the way."""
        return _shifted(self.b_enc, self.W_enc, -self.b_dec)


@dataclass(frozen=True, eq=False)
class PlainReLU(_Biased):
    """f = ReLU(pre)."""

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """ReLU(pre)."""
        return self.pre(x).relu()

    def as_jumprelu(self) -> "PlainJumpReLU":
        """Thresholds of zero."""
        return PlainJumpReLU(**self.tensors, threshold=torch.zeros_like(self.b_enc))


@dataclass(frozen=True, eq=False)
class PlainJumpReLU(_Biased):
    """f = pre 1[pre > threshold], strict; threshold >= 0."""

    threshold: Float[Tensor, " d_sae"]

    @property
    def fault(self) -> str | None:
        """Thresholds below 0, too: other libraries rectify codes, this one would not."""
        return super().fault or _for_some(self.threshold >= 0, "its threshold is negative")

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """pre 1[pre > threshold]."""
        pre = self.pre(x)
        return pre * (pre > self.threshold)

    def as_jumprelu(self) -> "PlainJumpReLU":
        """Itself."""
        return self


@dataclass(frozen=True, eq=False)
class PlainBatchTopK(PlainJumpReLU):
    """A JumpReLU with one threshold for all latents, and the k that it was trained with."""

    k: int

    def as_jumprelu(self) -> PlainJumpReLU:
        """The same without its k."""
        return PlainJumpReLU(**self.tensors)


@dataclass(frozen=True, eq=False)
class PlainTopK(_Biased):
    """f = the k largest of pre of each token, then ReLU."""

    k: int

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """The k largest of each row."""
        pre = self.pre(x)
        kept, index = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, index, kept.relu())


@dataclass(frozen=True, eq=False)
class PlainGated(Plain):
    """pi = (x - b_dec) W_enc + b_gate ; f = 1[pi > 0] ReLU(((x - b_dec) W_enc) exp(r_mag) + b_mag).

    W_enc is the gate's matrix (arXiv 2404.16014).
    """

    b_gate: Float[Tensor, " d_sae"]
    b_mag: Float[Tensor, " d_sae"]
    r_mag: Float[Tensor, " d_sae"]

    @property
    def fault(self) -> str | None:
        """An exp(r_mag) that overflows, too."""
        scaled = (self.W_enc * self.r_mag.exp()).isfinite().all(0)
        return super().fault or _for_some(scaled, "its W_enc exp(r_mag) is not finite")

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Magnitudes where the gate is open."""
        shared = (x - self.b_dec) @ self.W_enc
        magnitude = shared * self.r_mag.exp() + self.b_mag
        return magnitude.relu() * (shared + self.b_gate > 0)

    def as_jumprelu(self) -> PlainJumpReLU:
        """W_enc exp(r_mag), b_mag and theta = max(b_mag - exp(r_mag) b_gate, 0) (arXiv 2404.16014,
        section on weight tying). A negative value before the maximum means that the gate is open
        wherever the magnitude is positive: then the ReLU decides, at 0."""
        scale = self.r_mag.exp()
        theta = (self.b_mag - scale * self.b_gate).clamp(min=0)
        return PlainJumpReLU(self.W_enc * scale, self.W_dec, self.b_dec, self.b_mag, theta)

    def as_gated(self) -> "PlainGated":
        """Itself."""
        return self


def subtracting(
    b_enc: Float[Tensor, " d_sae"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_dec: Float[Tensor, " d_in"],
) -> Float[Tensor, " d_sae"]:
    """b_enc + b_dec W_enc: the bias in this library's convention, of an SAE that does not subtract
    b_dec from x. In float64 on the way."""
    return _shifted(b_enc, W_enc, b_dec)


def _shifted(bias: Tensor, W_enc: Tensor, shift: Tensor) -> Tensor:
    return (bias.double() + shift.double() @ W_enc.double()).to(bias.dtype)


def _for_some(sound: Tensor, fault: str) -> str | None:
    """The fault, and how many latents have it."""
    wrong = int((~sound).sum())
    return f"{fault} for {wrong} of {counted(len(sound), 'latent')}" if wrong else None


def _no_equal(plain: Plain, wanted: str) -> NoReturn:
    name = type(plain).__name__.removeprefix("Plain")
    raise InputError(
        f"a {name} SAE has no equal {wanted} SAE: which latents are on depends on the token's "
        "other latents, not on thresholds"
    )
