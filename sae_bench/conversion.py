"""From SAEs to plain SAEs and back, and between architectures that can compute the same."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from sae_bench.activations import BatchTopK, JumpReLU, RawThreshold, TopK
from sae_bench.annotations import typed
from sae_bench.decoders import FreeRows
from sae_bench.errors import InputError, a, counted, one_line
from sae_bench.penalties import NoPenalty
from sae_bench.plain import (
    Plain,
    PlainBatchTopK,
    PlainGated,
    PlainJumpReLU,
    PlainReLU,
    PlainTopK,
)
from sae_bench.registry import architecture
from sae_bench.sae import SparseAutoencoder

PROBES = 64
"""Inputs on which an SAE is compared with its plain form, at each of several distances."""


@typed()
def to_jumprelu(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The JumpReLU SAE that computes what a ReLU, BatchTopK or Gated SAE computes in evaluation
    (arXiv 2404.16014, section on weight tying): equal codes but for pre-activations within a few
    ulps of the threshold.

    Raises:
        InputError: there is none (a TopK SAE).
    """
    return _keeping(sae, jumprelu_of(sae))


@typed()
def to_gated(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The Gated SAE that computes what a ReLU, BatchTopK or JumpReLU SAE computes in evaluation, so
    that it runs in implementations of Gated SAEs. Equal as in `to_jumprelu`.

    Raises:
        InputError: there is none (a TopK SAE).
    """
    plain = exportable(sae)
    if not isinstance(plain, PlainGated):
        plain = _same_latents(plain.as_jumprelu(), plain, type(sae).__name__).as_gated()
    return _keeping(sae, plain)


def jumprelu_of(sae: SparseAutoencoder) -> PlainJumpReLU:
    """The JumpReLU SAE that computes the same, as a plain SAE.

    Raises:
        InputError: there is none, or none whose numbers float32 holds.
    """
    plain = exportable(sae)
    return _same_latents(plain.as_jumprelu(), plain, type(sae).__name__)


def _keeping(sae: SparseAutoencoder, plain: Plain) -> SparseAutoencoder:
    converted = sae_of(plain).to(sae.W_dec.device)
    converted.provenance = {**sae.provenance, "converted_from": type(sae).__name__}
    return converted


def sae_of(plain: Plain) -> SparseAutoencoder:
    """The SAE of one of the built-in architectures that computes `plain`, in evaluation mode. Its
    penalty is unknown, and its decoder's rows may have any norm.

    Raises:
        InputError: no architecture computes it, or a value that its architecture refuses.
    """
    slots: dict[str, Any] = {"penalty": NoPenalty(), "decoder": FreeRows()}
    extra: dict[str, Tensor] = {}
    tensors = dict(plain.tensors)
    match plain:
        case PlainGated():
            name = "GatedSAE"
        case PlainBatchTopK(k=k):
            name = "BatchTopKSAE"
            slots["activation"] = BatchTopK(k)
            extra["running_threshold"] = _the_one(tensors.pop("threshold"))
            extra["running_weight"] = torch.ones(())
        case PlainJumpReLU():
            name = "JumpReLUSAE"
            slots["activation"] = JumpReLU(RawThreshold())
            extra["raw_threshold"] = tensors.pop("threshold")
        case PlainTopK(k=k):
            name = "TopKSAE"
            slots["activation"] = TopK(k)
        case PlainReLU():
            name = "ReLUSAE"
        case _:
            raise InputError(f"no architecture computes a {type(plain).__name__}")
    sae = architecture(name)(plain.d_in, plain.d_sae, **slots)
    assert {name for name, _ in sae.named_parameters()} <= set(tensors | extra)
    sae.adopt(tensors | extra)
    return sae.eval()


def _the_one(threshold: Tensor) -> Tensor:
    assert (threshold == threshold[0]).all()
    return threshold[0]


@torch.no_grad()
def exportable(sae: SparseAutoencoder) -> Plain:
    """`sae.plain()`, once it has been seen to be the truth: codes and reconstructions of both are
    compared on random combinations of decoder rows, in a copy of float64, where conventions differ
    and round-off does not. An architecture that overrides `latents` or `decode` and forgets `plain`
    is refused instead of being written as something else.

    Raises:
        InputError: nothing that other libraries know, not what the SAE computes, or numbers that
            are not finite in float32.
    """
    name = type(sae).__name__
    found = sae.plain()
    if not isinstance(found, Plain):
        raise InputError(f"{name}: its `plain` gives {a(type(found).__name__)}, no Plain")
    if found.misfit:
        raise InputError(f"{name}: its `plain` is no SAE: {found.misfit}")
    narrow = {name: tensor.to("cpu", torch.float32) for name, tensor in found.tensors.items()}
    written = dataclasses.replace(found, **narrow)
    if written.fault:
        raise InputError(f"{name}: {written.fault}")
    try:
        _compare(sae)
    except (RuntimeError, TypeError) as error:  # no copy, or types that do not go together
        raise InputError(
            f"{name}: cannot be compared with its `plain` in float64 ({one_line(error)}); "
            "its tensors have to be parameters or buffers, and constants to take the dtype of x"
        ) from None
    return written


def _compare(sae: SparseAutoencoder) -> None:
    """Holds an SAE against its plain form."""
    exact = copy.deepcopy(sae).to("cpu", torch.float64).eval()
    plain = exact.plain()
    x = _probes(plain)
    f, codes = plain.encode(x), exact.encode(x)
    active = ((f > 0) | (codes > 0)).sum()
    other_codes = _unlike(codes, f).sum() / active.clamp(min=1)
    x_hat = plain.decode(f)
    other = _unlike(exact.decode(f), x_hat) | _unlike(exact.decode(codes), exact(x))
    # A few codes may have their pre-activation at the threshold to the last bit.
    if other_codes > 1e-3 or other.any():
        raise InputError(
            f"{type(sae).__name__} computes other codes or reconstructions than its `plain` says; "
            "override `plain` where you override `latents`, `decode` or `forward`"
        )


def _same_latents(equal: PlainJumpReLU, plain: Plain, name: str) -> PlainJumpReLU:
    """`equal`, if it has the latents of `plain` on: theta = b_mag - exp(r_mag) b_gate keeps nothing
    of b_gate in float32 where exp(r_mag) is too small, and overflows where it is too large."""
    if equal.fault:
        raise InputError(f"{name}: as a JumpReLU SAE {equal.fault}")
    if not isinstance(plain, PlainGated):
        return equal
    exact, other = _double(plain), _double(equal)
    x = _probes(exact)
    on, others = exact.encode(x) > 0, other.encode(x) > 0
    if (on != others).sum() > 1e-2 * on.sum().clamp(min=1):
        wrong = counted(int((on != others).any(0).sum()), "latent")
        raise InputError(
            f"{name}: as a JumpReLU SAE {wrong} would be on elsewhere, since exp(r_mag) is too "
            "small for thresholds in float32; write it in a format that has Gated SAEs"
        )
    return equal


def _double(plain: Any) -> Any:
    tensors = {name: tensor.double() for name, tensor in plain.tensors.items()}
    return dataclasses.replace(plain, **tensors)


def _unlike(found: Tensor, expected: Tensor) -> Tensor:
    """Where rows differ by more than a millionth of their largest entry."""
    return ~((found - expected).abs() <= 1e-6 * expected.abs().amax(1, keepdim=True))


def _probes(plain: Plain) -> Tensor:
    """Inputs around b_dec, some as far from it as b_dec is from zero, some so far that biases and
    thresholds matter, and a tenth and ten times of that."""
    generator = torch.Generator().manual_seed(0)
    reach = float(plain.W_enc.norm(dim=0).mean())
    vectors = (
        tensor
        for name, tensor in plain.tensors.items()
        if tensor.ndim == 1 and name not in ("b_dec", "r_mag")
    )
    offset = max((float(vector.abs().mean()) for vector in vectors), default=0.0)
    lengths = {float(plain.b_dec.norm()), offset / reach if reach else 0.0} - {0.0} or {1.0}
    distances = [size * length for size in (0.1, 1.0, 10.0) for length in sorted(lengths)]
    rows = torch.randint(plain.d_sae, (len(distances) * PROBES, 8), generator=generator)
    amounts = torch.rand(len(rows), 8, 1, generator=generator, dtype=torch.float64)
    combined = (amounts * plain.W_dec[rows]).sum(1)
    directions = combined / combined.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return (
        plain.b_dec
        + torch.tensor(distances, dtype=torch.float64).repeat(PROBES)[:, None] * directions
    )
