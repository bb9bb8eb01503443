"""The training loss of one batch, and the term that every architecture has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.activations import Latents
from sae_bench.errors import InputError


@dataclass(frozen=True)
class Loss:
    """Value of the training loss on one batch.

    total: sum of `terms`; terms: name -> scalar, each averaged over the batch; latents and
    reconstruction: what the forward pass produced on the way.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]
    latents: Latents
    reconstruction: Float[Tensor, "batch d_in"]

    @classmethod
    def of(
        cls,
        terms: Mapping[str, Float[Tensor, ""]],
        latents: Latents,
        reconstruction: Float[Tensor, "batch d_in"],
    ) -> Self:
        """The loss that is the sum of `terms`.

        Raises:
            InputError: `terms` is no dictionary of scalars.
        """
        if not isinstance(terms, Mapping):
            raise InputError(f"loss_terms must return a dictionary, got a {type(terms).__name__}")
        for name, term in terms.items():
            if term.ndim:
                raise InputError(
                    f"the loss term {name!r} must be a scalar, averaged over the batch; "
                    f"it has the shape {tuple(term.shape)}"
                )
        return cls(torch.stack(list(terms.values())).sum(), terms, latents, reconstruction)


def squared_error(
    x: Float[Tensor, "batch d_in"], reconstruction: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    """Reconstruction loss: sum over d_in, mean over the batch."""
    return (x - reconstruction).square().sum() / len(x)
