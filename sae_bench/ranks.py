"""Where samples stand: among those of their latent, and near its threshold."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench import sparse_kernels as kernels


def ranks(
    latent: Int[Tensor, " samples"], d_sae: int
) -> tuple[Int[Tensor, " samples"], Int[Tensor, " d_sae"]]:
    """How many earlier samples each has of its latent, and how many samples each latent has."""
    if latent.device.type == "cpu":
        found = kernels.ranks(latent.numpy(), d_sae)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    order = latent.argsort(stable=True)
    count = torch.bincount(latent, minlength=d_sae)
    place = torch.arange(len(latent), device=latent.device)
    rank = torch.empty_like(place)
    rank[order] = place - (count.cumsum(0) - count)[latent[order]]
    return rank, count


def near(
    latent: Int[Tensor, " samples"],
    pre: Float[Tensor, " samples"],
    theta: Float[Tensor, " d_sae"],
    half: Float[Tensor, " d_sae"],
) -> Int[Tensor, " near"]:
    """Indices of the samples with |pre - theta| <= half."""
    if latent.device.type == "cpu":
        arrays = (each.detach().numpy() for each in (latent, pre, theta, half))
        return torch.from_numpy(kernels.near(*arrays))
    return ((pre - theta[latent]).abs() <= half[latent]).nonzero().squeeze(1)
