"""TopK SAE with the AuxK loss (Gao et al. 2024, arXiv 2406.04093)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_bench.activations import Activation, Latents, TopK
from sae_bench.components import Component
from sae_bench.errors import InputError
from sae_bench.penalties import NoPenalty, Penalty
from sae_bench.sae import SparseAutoencoder, squared_error


@dataclass(frozen=True)
class AuxK(Component):
    """Dead latents model what the living ones left over (arXiv 2406.04093, appendix A.2).

    Args:
        k: dead latents used for each token; 0 means d_in / 2 of the SAE.
        coefficient: weight of the term; 0 turns it off.
        dead_after: training tokens of silence after which a latent counts as dead (10 million in
            the paper; short runs need less).
    """

    k: int = 0
    coefficient: float = 1 / 32
    dead_after: int = 10_000_000

    def __post_init__(self) -> None:
        if not (self.k >= 0 and 0 <= self.coefficient < math.inf and self.dead_after >= 1):
            raise InputError(f"{self.label}: k, coefficient >= 0 and dead_after >= 1 are needed")

    def value(
        self,
        residual: Float[Tensor, "batch d_in"],
        pre: Float[Tensor, "batch d_sae"],
        dead: Bool[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
    ) -> Float[Tensor, ""]:
        """coefficient * ||e - e_hat||^2, reduced like the reconstruction loss: e is the residual
        x - x_hat (detached by the caller), e_hat decodes the ReLU of the k largest pre-activations
        among dead latents, without b_dec. Zero when no latent is dead."""
        index = dead.nonzero().squeeze(-1)
        if self.coefficient == 0 or len(index) == 0:
            return residual.new_zeros(())
        pre = pre.index_select(1, index)
        k = min(self.k or residual.shape[1] // 2, len(index))
        kept, place = pre.topk(k, dim=-1, sorted=False)
        f = torch.zeros_like(pre).scatter(-1, place, kept.relu())
        return self.coefficient * squared_error(residual, f @ W_dec.index_select(0, index))


class TopKSAE(SparseAutoencoder):
    """The k largest latents of each token, and AuxK against dead ones.

    f keeps the k largest pre-activations of each token, then ReLU. L0 is fixed: no penalty.
    """

    activation: Activation = TopK(64)
    penalty: Penalty = NoPenalty()
    aux: AuxK = AuxK()

    def loss_terms(
        self,
        x: Float[Tensor, "batch d_in"],
        latents: Latents,
        reconstruction: Float[Tensor, "batch d_in"],
        sparsity_scale: float,
    ) -> dict[str, Float[Tensor, ""]]:
        """Adds the auxiliary loss over dead latents."""
        dead = self.silent_tokens >= self.aux.dead_after
        residual = (x - reconstruction).detach()
        terms = super().loss_terms(x, latents, reconstruction, sparsity_scale)
        return terms | {"auxk": self.aux.value(residual, latents.pre, dead, self.W_dec)}
