"""From SAEs to plain SAEs and back, and between architectures that can compute the same."""

from typing import Any

import torch
from torch import Tensor

from sae_bench.activations import BatchTopK, JumpReLU, RawThreshold, TopK
from sae_bench.decoders import FreeRows
from sae_bench.errors import InputError
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
"""Inputs on which an SAE is compared with its plain form, for each of three magnitudes."""


def to_jumprelu(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The JumpReLU SAE that computes what a ReLU, BatchTopK or Gated SAE computes in evaluation
    (arXiv 2404.16014, section on weight tying): equal codes but for pre-activations within a few
    ulps of the threshold.

    Raises:
        InputError: there is none (a TopK SAE).
    """
    return _keeping(sae, exportable(sae).as_jumprelu())


def to_gated(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The Gated SAE that computes what a ReLU, BatchTopK or JumpReLU SAE computes in evaluation, so
    that it runs in implementations of Gated SAEs. Equal as in `to_jumprelu`.

    Raises:
        InputError: there is none (a TopK SAE).
    """
    return _keeping(sae, exportable(sae).as_gated())


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
    copies = {name: tensor.detach().clone() for name, tensor in (tensors | extra).items()}
    missing, unknown = sae.load_state_dict(copies, strict=False, assign=True)
    assert not unknown
    assert not set(missing) & {parameter for parameter, _ in sae.named_parameters()}
    return sae.eval()


def _the_one(threshold: Tensor) -> Tensor:
    assert (threshold == threshold[0]).all()
    return threshold[0]


@torch.no_grad()
def exportable(sae: SparseAutoencoder) -> Plain:
    """`sae.plain()`, once it has been seen to be the truth: codes and reconstructions of both are
    compared on random combinations of decoder rows. An architecture that overrides `latents` or
    `decode` and forgets `plain` is refused instead of being written as something else.

    Raises:
        InputError: nothing that other libraries know, or not what the SAE computes.
    """
    plain, was_training = sae.plain(), sae.training
    x = _probes(plain)
    sae.eval()
    codes, expected = sae.encode(x), plain.encode(x)
    x_hat, expected_x_hat = sae.decode(expected), plain.decode(expected)
    sae.train(was_training)
    unlike = ~torch.isclose(codes, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    same = unlike.float().mean() <= 1e-3  # a few may lie within round-off of their threshold
    round_off = 1e-4 * float(expected_x_hat.abs().max())
    if not (same and torch.allclose(x_hat, expected_x_hat, rtol=1e-3, atol=round_off)):
        raise InputError(
            f"{type(sae).__name__} computes other codes or reconstructions than its `plain` says; "
            "override `plain` where you override `latents` or `decode`"
        )
    return plain


def _probes(plain: Plain) -> Tensor:
    """Inputs at which some latents are on, at three magnitudes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(plain.d_sae, (3 * PROBES, 8), generator=generator)
    amounts = torch.rand(3 * PROBES, 8, 1, generator=generator)
    size = float(plain.b_dec.norm()) + 1.0
    magnitudes = torch.tensor([0.1, 1.0, 10.0]).repeat(PROBES)[:, None] * size
    W_dec = plain.W_dec
    combined = (amounts.to(W_dec) * W_dec[rows.to(W_dec.device)]).sum(1)
    return plain.b_dec + magnitudes.to(W_dec) * combined / combined.norm(dim=1, keepdim=True)
