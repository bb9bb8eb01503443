"""Where samples stand: among those of their latent, and near its threshold."""

from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.backends import backend


def ranks(
    latent: Int[Tensor, " samples"], d_sae: int
) -> tuple[Int[Tensor, " samples"], Int[Tensor, " d_sae"]]:
    """How many earlier samples each has of its latent, and how many samples each latent has."""
    return backend(latent).ranks(latent, d_sae)


def near(
    latent: Int[Tensor, " samples"],
    pre: Float[Tensor, " samples"],
    theta: Float[Tensor, " d_sae"],
    half: Float[Tensor, " d_sae"],
) -> Int[Tensor, " near"]:
    """Indices of the samples with |pre - theta| <= half."""
    return backend(latent).near(latent, pre, theta, half)
