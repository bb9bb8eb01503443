"""Small SAEs with every path alive: wide kernels, few latents, parameters away from zero."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.activations import JumpReLU, LogThreshold, RawThreshold
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.decoders import FreeRows
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, RIL1
from sae_bench.recipe import Recipe
from sae_bench.registry import architectures
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trained

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


# -- training -------------------------------------------------------------------------------------

RECIPE = Recipe(
    tokens=20 * 32,
    batch_size=32,
    lr=1e-2,
    betas=(0.9, 0.999),
    lr_warmup=4,
    lr_decay=4,
    penalty_warmup=8,
)
JUMP = {"activation": JumpReLU(LogThreshold(0.1)), "penalty": L0(1e-2), "kernel": Rectangle(0.2)}


def small_cache() -> ActivationCache:
    """Activations around a mean that is not zero."""
    x = torch.randn(500, D_IN, generator=torch.Generator().manual_seed(0))
    return ActivationCache.from_tensor(x + 0.5)


def small_arms(recipe: Recipe = RECIPE) -> list[Arm]:
    """An arm of every architecture, and some with other slots."""
    return [
        *(Arm(cls, D_SAE, recipe, slots=small_slots(cls)) for cls in ARCHITECTURES.values()),
        Arm(SparseAutoencoder, 9, recipe, 1, JUMP | {"activation": JumpReLU(RawThreshold(0.1))}),
        Arm(SparseAutoencoder, 7, recipe, slots={"penalty": RIL1(0.1), "decoder": FreeRows()}),
    ]


def bits(trained: Trained) -> dict[str, bytes]:
    """The state of a trained SAE, to the last bit."""
    assert trained.sae is not None
    return {name: t.numpy().tobytes() for name, t in trained.sae.state_dict().items()}
