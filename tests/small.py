"""Small SAEs with every path alive: wide kernels, few latents, parameters away from zero."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.kernels import Rectangle
from sae_bench.registry import architectures
from sae_bench.sae import SparseAutoencoder

D_IN, D_SAE, BATCH = 6, 16, 32

ARCHITECTURES = {
    name: cls
    for name, cls in architectures().items()
    if cls.__module__.startswith("architectures.")
}
"""The built-in architectures, as the registry finds them: a new one is tested on arrival."""


def small_slots(cls: type[SparseAutoencoder]) -> dict[str, Any]:
    """The slots that make the defaults of an architecture meaningful at this size."""
    slots: dict[str, Any] = {"kernel": cls.kernel.replace(kernel=Rectangle(0.5))}
    if hasattr(cls.activation, "k"):
        slots["activation"] = cls.activation.replace(k=4)
    return slots


def small_sae(cls: type[SparseAutoencoder], seed: int = 0, **slots: Any) -> SparseAutoencoder:
    """An SAE of `cls` whose parameters have all been moved away from their initial values."""
    sae = cls(D_IN, D_SAE, seed=seed, **{**small_slots(cls), **slots})
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    sae.project_parameters_()
    return sae


def small_batch(seed: int = 0, batch: int = BATCH) -> Float[Tensor, "batch d_in"]:
    """Activations with E||x||^2 about 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, D_IN, generator=generator) / D_IN**0.5
