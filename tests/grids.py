"""Caches of tiny language models, SAEs made by hand, and small grids, for the tests of runs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from architectures import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm, grid
from sae_bench.cache import ActivationCache
from sae_bench.contexts import Packed
from sae_bench.kernels import Rectangle
from sae_bench.models import LanguageModel
from sae_bench.penalties import L0, L1
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from tests.corpus import Letters

SITE = "layers.1.resid_post"
RECIPE = Recipe(
    tokens=640, batch_size=64, lr=3e-3, betas=(0.9, 0.999), lr_warmup=2, penalty_warmup=4
)


def lm_cache(lm: LanguageModel, root: Path, **changes: Any) -> ActivationCache:
    """About 1,200 tokens of `lm` at SITE, and 400 held out."""
    options: dict[str, Any] = {
        "site": SITE,
        "text": Letters(),
        "context": Packed(24),
        "tokens": 1200,
        "held_out_tokens": 400,
        "shard_tokens": 400,
        **changes,
    }
    site = options.pop("site")
    return ActivationCache.build(lm, [site], root=root, **options)[site]


def tensor_cache(rows: int = 600, d_in: int = 8, seed: int = 0, **options: Any) -> ActivationCache:
    """Random activations with a mean and scales of their own; no language model."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(d_in, generator=generator) * 3
    x = torch.randn(rows, d_in, generator=generator) * scales + 2 * scales
    return ActivationCache.from_tensor(x, **options)


def identity_sae(d_in: int) -> SparseAutoencoder:
    """relu(x) and relu(-x), decoded with both signs: reconstructs to the bit."""
    eye = torch.eye(d_in)
    return _with_weights(ReLUSAE(d_in, 2 * d_in), W_enc=torch.cat([eye, -eye], 1))


def constant_sae(value: torch.Tensor) -> SparseAutoencoder:
    """Predicts `value` whatever comes, with no latent on."""
    d_in = len(value)
    sae = ReLUSAE(d_in, 4)
    return _with_weights(sae, W_enc=torch.zeros(d_in, 4), b_enc=torch.full((4,), -1.0), b_dec=value)


def _with_weights(sae: SparseAutoencoder, **weights: torch.Tensor) -> SparseAutoencoder:
    with torch.no_grad():
        for name, value in weights.items():
            sae.get_parameter(name).copy_(value)
        sae.W_dec.copy_(sae.W_enc.T)
    return sae


def random_saes(d_in: int, d_sae: int = 12) -> list[SparseAutoencoder]:
    """One untrained SAE of each kind, with biases that make latents of all frequencies."""
    saes = [
        ReLUSAE(d_in, d_sae, seed=1),
        TopKSAE(d_in, d_sae, seed=2, activation=TopK(3)),
        GatedSAE(d_in, d_sae, seed=3),
        JumpReLUSAE(d_in, d_sae, seed=4, activation=JumpReLU(LogThreshold(0.4))),
    ]
    with torch.no_grad():
        for sae in saes:
            for name in sae.biases:
                bias = sae.get_parameter(name)
                bias.copy_(torch.linspace(-4, 1, len(bias)))
    return saes


def four_architectures(recipe: Recipe = RECIPE, d_sae: int = 16) -> list[Arm]:
    """Four architectures, two settings each."""
    common: dict[str, Any] = {"d_sae": d_sae, "recipe": recipe}
    jump = {"activation": JumpReLU(LogThreshold(0.05)), "kernel": Rectangle(0.05)}
    return [
        *grid(ReLUSAE, penalty=[L1(0.01), L1(0.1)], **common),
        *grid(TopKSAE, activation=[TopK(2), TopK(5)], **common),
        *grid(GatedSAE, penalty=[L1(0.01), L1(0.1)], **common),
        *grid(JumpReLUSAE, penalty=[L0(1e-3), L0(1e-2)], **jump, **common),
    ]


def state_of(sae: SparseAutoencoder) -> dict[str, bytes]:
    """Every tensor of an SAE, to the bit."""
    return {name: np.asarray(t.detach()).tobytes() for name, t in sae.state_dict().items()}


def flipped(path: Path) -> None:
    """Changes a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
