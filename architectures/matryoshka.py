"""Matryoshka SAE with BatchTopK (Bussmann et al. 2025, arXiv 2503.17547)."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from architectures.batchtopk import BatchTopKSAE
from sae_bench.errors import InputError
from sae_bench.sae import Loss, squared_error


class MatryoshkaSAE(BatchTopKSAE):
    """Nested dictionaries: the first m latents must reconstruct x alone, for each prefix m.

    Loss = sum over m in M of ||x - (f_{:m} W_dec_{:m} + b_dec)||^2 + AuxK of the full
    reconstruction, with M = {m_1 < ... < m_n = d_sae} the same in every batch and one BatchTopK
    over all latents. Prefixes are summed; public code takes their mean instead (the authors' with
    the empty prefix, b_dec alone, as one more), in which AuxK weighs that many times as much.

    Slot `prefixes`: M as shares of d_sae, ascending to 1; each is rounded to a whole number of
    latents, at least one, and prefixes that coincide count once. The default is the paper's for
    Gemma 2 2B (2048, 6144, 14336, 30720 and 65536 of 65536).

    Raises:
        InputError: shares that are not ascending from above 0 to exactly 1.
    """

    prefixes: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)

    @classmethod
    def resolve(cls, slots: Mapping[str, Any]) -> dict[str, Any]:
        """Checks the shares as well."""
        resolved = super().resolve(slots)
        shares = resolved["prefixes"]
        if not (shares[-1:] == (1,) and list(shares) == sorted({0, *shares})[1:]):
            raise InputError(
                f"{cls.__name__}: prefixes must be ascending shares of d_sae, above 0 and ending "
                f"with 1, got {shares!r:.60}"
            )
        return resolved

    @property
    def prefix_sizes(self) -> list[int]:
        """M: the number of latents of each prefix, ascending to d_sae."""
        return sorted({max(1, round(share * self.d_sae)) for share in self.prefixes})

    def nested(self, f: Float[Tensor, "batch d_sae"]) -> list[Float[Tensor, "batch d_in"]]:
        """The reconstruction by each prefix. Each adds its own latents to the one before it, so
        that all of them together use each row of W_dec once."""
        sizes = self.prefix_sizes
        blocks = [end - start for start, end in zip([0, *sizes], sizes, strict=False)]
        x_hat, nested = self.b_dec, []
        for part, rows in zip(f.split(blocks, 1), self.W_dec.split(blocks), strict=True):
            x_hat = torch.addmm(x_hat, part, rows).to(self.b_dec.dtype)
            nested.append(x_hat)
        return nested

    def decode(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """The reconstruction by all latents."""
        return self.nested(f)[-1]

    def loss(self, x: Float[Tensor, "batch d_in"], sparsity_scale: float = 1.0) -> Loss:
        """Adds the errors of the inner prefixes, from the same pass over W_dec."""
        latents = self.latents(x)
        *inner, full = self.nested(latents.f)
        errors = sum((squared_error(x, x_hat) for x_hat in inner), start=x.new_zeros(()))
        terms = self.loss_terms(x, latents, full, sparsity_scale) | {"prefixes": errors}
        return Loss.of(terms, latents, full)

    def curvature(self) -> Float[Tensor, " d_sae"]:
        """||d_i||^2 times the number of prefixes that hold latent i."""
        sizes = torch.tensor(self.prefix_sizes, device=self.W_dec.device)
        latent = torch.arange(self.d_sae, device=self.W_dec.device)
        return super().curvature() * (latent[:, None] < sizes).sum(1)
