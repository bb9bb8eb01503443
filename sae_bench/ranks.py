"""The place of each sample among those of its latent."""

import torch
from jaxtyping import Int
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
