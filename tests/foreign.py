"""SAEs as other people train them: no weight is trivial, and rows of W_dec have norms from 1/2 to
2."""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from architectures import BatchTopKSAE, JumpReLUSAE
from sae_bench.activations import JumpReLU, RawThreshold
from sae_bench.decoders import FreeRows
from sae_bench.penalties import NoPenalty
from sae_bench.sae import SparseAutoencoder
from tests.small import ARCHITECTURES

D_IN, D_SAE, TOKENS, K = 16, 48, 256, 8
SHARED = 0.9
"""Threshold of the BatchTopK SAEs."""


def raw_inputs(seed: int = 100) -> Float[Tensor, "tokens d_in"]:
    """Activations with a mean, E||x||^2 about 40."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, D_IN, generator=generator)
    return 1.5 * x + torch.linspace(-1, 1, D_IN)


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Every tensor that an SAE may have, by our names. Some thresholds are zero; some gates are
    open wherever the magnitude is positive (b_mag - exp(r_mag) b_gate < 0)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_dec = normal(D_SAE, D_IN)
    W_dec *= torch.linspace(0.5, 2, D_SAE)[:, None] / W_dec.norm(dim=1, keepdim=True)
    threshold = 1.5 * torch.rand(D_SAE, generator=generator) + 0.05
    threshold[::6] = 0
    return {
        "W_enc": 0.5 * normal(D_IN, D_SAE),
        "W_dec": W_dec,
        "b_dec": 0.7 * normal(D_IN),
        "b_enc": 0.5 * normal(D_SAE) - 0.7,
        "threshold": threshold,
        "b_gate": 0.5 * normal(D_SAE) - 0.3,
        "b_mag": 0.5 * normal(D_SAE),
        "r_mag": 0.3 * normal(D_SAE),
    }


def some(*names: str, seed: int = 0) -> dict[str, Tensor]:
    """A few of `weights`; W_enc, W_dec and b_dec are always among them."""
    found = weights(seed)
    return {name: found[name] for name in ("W_enc", "W_dec", "b_dec", *names)}


@torch.no_grad()
def random_sae(cls: type[SparseAutoencoder], seed: int = 0, **slots: Any) -> SparseAutoencoder:
    """An SAE of `cls` with these weights, in evaluation mode."""
    if hasattr(cls.activation, "k"):
        slots = {"activation": cls.activation.replace(k=K), **slots}
    sae = cls(D_IN, D_SAE, **{"decoder": FreeRows(), "penalty": NoPenalty(), **slots}).eval()
    values = weights(seed)
    values["raw_threshold"] = values["threshold"]
    values["log_threshold"] = values["threshold"].clamp(min=0.01).log()
    for name, parameter in sae.named_parameters():
        parameter.copy_(values[name])
    for name, buffer in sae.named_buffers():  # a running mean that is not yet unbiased
        buffer.copy_({"running_threshold": SHARED / 2, "running_weight": 0.5}.get(name, buffer))
    return sae


def unset(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The same BatchTopK SAE before its first batch: its threshold is 0."""
    sae.running_threshold.zero_()
    sae.running_weight.zero_()
    return sae


SAES = {
    **{name: random_sae(cls) for name, cls in ARCHITECTURES.items()},
    "zero thresholds": random_sae(JumpReLUSAE, activation=JumpReLU(RawThreshold())),
    "unset threshold": unset(random_sae(BatchTopKSAE)),
}
"""Every architecture of the registry, and thresholds at their edge."""


def placed(sae: SparseAutoencoder, **provenance: Any) -> SparseAutoencoder:
    """A copy that says where it comes from; those above are shared."""
    copied = copy.deepcopy(sae)
    copied.provenance = provenance
    return copied


@torch.no_grad()
def assert_same_codes(
    sae: SparseAutoencoder,
    codes: Float[Tensor, "*batch d_sae"],
    reconstruction: Float[Tensor, "*batch d_in"],
    x: Float[Tensor, "tokens d_in"] | None = None,
) -> None:
    """Whether `sae` gives these codes and reconstructions of `x` (`raw_inputs()`), to the round-off
    of float32: the same latents on at each token without exception (no pre-activation of these
    seeds is that close to its threshold), and enough of them."""
    x = raw_inputs() if x is None else x
    f = sae.encode(x)
    codes, reconstruction = (t.reshape(len(x), -1) for t in (codes, reconstruction))
    on = f > 0
    assert torch.equal(on, codes > 0)
    assert torch.equal(on, codes != 0)
    assert 2 < on.sum(1).double().mean() < D_SAE - 2
    assert on.any(0).sum() > D_SAE / 2
    for ours, theirs in ((f, codes), (sae.decode(f), reconstruction)):
        round_off = 16 * torch.finfo(torch.float32).eps * math.sqrt(D_SAE)
        torch.testing.assert_close(
            ours, theirs.to(ours), rtol=0, atol=round_off * float(theirs.abs().max())
        )


def same_sae(one: SparseAutoencoder, other: SparseAutoencoder) -> None:
    """Whether two SAEs of ours give the same."""
    with torch.no_grad():
        f = other.encode(raw_inputs())
        assert_same_codes(one, f, other.decode(f))
