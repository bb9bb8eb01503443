"""Decoder constraints: how rows of W_dec start and what training may do to their norms."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.components import Component
from sae_bench.errors import InputError
from sae_bench.rows import remove_parallel_, to_unit_


def _directions(d_sae: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "d_sae d_in"]:
    """He-uniform entries (their scale does not matter), rows scaled to unit norm."""
    rows = torch.rand(d_sae, d_in, generator=generator) * 2 - 1
    return rows / rows.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class Decoder(Component):
    """Base of all decoder constraints."""

    fixes_norms: ClassVar[bool] = False
    """Whether rows keep their norms, so that codes cannot shrink while rows grow."""

    @abstractmethod
    def initial(
        self, d_sae: int, d_in: int, generator: torch.Generator
    ) -> Float[Tensor, "d_sae d_in"]:
        """Initial W_dec; the encoder starts as its transpose."""

    def project_gradient_(
        self, W_dec: Float[Tensor, "d_sae d_in"], gradient: Float[Tensor, "d_sae d_in"]
    ) -> None:
        """Removes what the constraint forbids from the gradient, in place, before the update."""

    def project_(self, W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """Restores the constraint, in place, after the update."""


@dataclass(frozen=True)
class UnitRows(Decoder):
    """Rows of unit norm: the gradient parallel to each row is removed before the update and rows
    are renormalised after it (arXiv 2407.14435, appendix on training)."""

    fixes_norms = True

    def initial(
        self, d_sae: int, d_in: int, generator: torch.Generator
    ) -> Float[Tensor, "d_sae d_in"]:
        """Random directions of unit norm."""
        return _directions(d_sae, d_in, generator)

    def project_gradient_(
        self, W_dec: Float[Tensor, "d_sae d_in"], gradient: Float[Tensor, "d_sae d_in"]
    ) -> None:
        """g_i -= (g_i . d_i) d_i."""
        remove_parallel_(W_dec, gradient)

    def project_(self, W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """d_i /= ||d_i||."""
        to_unit_(W_dec)


@dataclass(frozen=True)
class FreeRows(Decoder):
    """Rows of any norm; for penalties that weigh codes by it (RI-L1).

    Raises:
        InputError: the initial norm is not a positive number.
    """

    norm: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.norm < math.inf:
            raise InputError(f"FreeRows: norm must be a positive number, got {self.norm}")

    def initial(
        self, d_sae: int, d_in: int, generator: torch.Generator
    ) -> Float[Tensor, "d_sae d_in"]:
        """Random directions of norm `norm`."""
        return self.norm * _directions(d_sae, d_in, generator)
