"""Trained SAEs changed afterwards, without training: what shrinkage costs and what selection does.

L1 shrinks codes and selects latents at once. Rescaling the codes of a trained SAE by least squares
removes the shrinkage and leaves the selection as it is; a threshold at inference changes the
selection and leaves the codes of what stays on as they are.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.conversion import to_jumprelu
from sae_bench.errors import InputError
from sae_bench.sae import SparseAutoencoder

RIDGE = 1e-6
"""Added to the diagonal of the normal equations, as a share of it."""


@torch.no_grad()
def rescaled(
    sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], chunk: int = 2048
) -> SparseAutoencoder:
    """The SAE whose decoder rows are g_i d_i, with the g that minimise
    sum ||x - b_dec - sum_i g_i f_i d_i||^2 over the rows: one factor a latent, same codes, same L0.
    Latents that never fire on them keep g = 1.

    The normal equations are A g = b with A_ij = (sum f_i f_j)(d_i . d_j), b_i = sum f_i (x - b_dec)
    . d_i.
    """
    gram = torch.zeros(sae.d_sae, sae.d_sae, dtype=torch.float64)
    right = torch.zeros(sae.d_sae, dtype=torch.float64)
    W_dec = sae.W_dec.detach()
    for part in x.split(chunk):
        f = sae.encode(part)
        gram += (f.T @ f).double().cpu()
        right += (f * ((part - sae.b_dec) @ W_dec.T)).sum(0).double().cpu()
    fires = gram.diagonal() > 0
    system = (gram * (W_dec @ W_dec.T).double().cpu())[fires][:, fires]
    system.diagonal().mul_(1 + RIDGE)
    g = torch.ones(sae.d_sae, dtype=torch.float64)
    g[fires] = torch.linalg.solve(system, right[fires])
    changed = copy.deepcopy(sae)
    changed.W_dec.mul_(g.to(changed.W_dec)[:, None])
    return changed


@torch.no_grad()
def thresholded(
    sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], l0: float
) -> SparseAutoencoder:
    """The JumpReLU SAE with one threshold for all latents, in addition to what the SAE has, such
    that L0 over the rows is `l0`: its codes are those of the SAE where they exceed it.

    Raises:
        InputError: fewer latents than that are on to begin with.
    """
    f = sae.encode(x)
    codes = f[f > 0]
    kept = round(l0 * len(x))
    if not 0 < kept <= len(codes):
        raise InputError(
            f"thresholded: an L0 of {l0:g} was asked for, and the SAE has {len(codes) / len(x):.1f}"
        )
    theta = codes.kthvalue(len(codes) - kept + 1).values
    changed = to_jumprelu(sae)
    below = torch.nextafter(theta, torch.zeros_like(theta))  # a code of theta itself stays on
    changed.get_parameter("raw_threshold").clamp_(min=float(below))
    return changed
