"""Where the latents of a batch fired: the places that codes, steps and gradients share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae_bench.backends import backend
from sae_bench.torch_kernels import offsets

Thinning = Callable[[Int[Tensor, " width"]], int]
"""How many samples each latent has in a step -> how many of each are taken; never more for more."""


BLOCK = 16
"""Tokens after which it is looked which latents need no more samples."""


class Bounds(NamedTuple):
    """Of each latent: its threshold, and above `low`, up to `high`, what is near it."""

    low: Float[Tensor, " width"]
    theta: Float[Tensor, " width"]
    high: Float[Tensor, " width"]


@dataclass(frozen=True, eq=False)
class Support:
    """Entries of a matrix of `tokens` rows and `width` columns, row by row and ascending in each.

    starts: where each row's entries begin, and the end of the last. column: the latent of each.
    Both lie where the matrix does, which decides what computes with them (`backends`).
    near: how many entries near its threshold each latent has, those that were left out included.
    """

    starts: Int[Tensor, " ends"]
    column: Int[Tensor, " entries"]
    width: int
    near: Int[Tensor, " width"] | None = None

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.rows, self.width

    def __len__(self) -> int:
        return len(self.column)

    @property
    def latents(self) -> Int[Tensor, " entries"]:
        """The latent of each entry."""
        return self.column

    @cached_property
    def tokens(self) -> Int[Tensor, " entries"]:
        """The token of each entry."""
        return backend(self.starts).rows_of(self.starts, len(self))

    @cached_property
    def _order(self) -> Int[Tensor, " entries"]:
        return torch.arange(len(self), device=self.column.device)

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        return backend(self.column).transpose(self.starts, self.column, self.width)

    def narrowed(
        self, kept: Bool[Tensor, " entries"], first: int = 0, width: int | None = None
    ) -> tuple["Support", Shaped[Tensor, " _"]]:
        """Some of the entries, in a matrix of `width` columns that starts at the column `first`,
        and the index that picks their values."""
        starts, column, chosen = backend(kept).narrow(self.starts, self.column, kept, first)
        return Support(starts, column, self.width if width is None else width), chosen

    def thinned(
        self,
        value: Float[Tensor, " entries"],
        theta: Float[Tensor, " width"],
        high: Float[Tensor, " width"],
        most: int,
    ) -> tuple["Support", Shaped[Tensor, " _"]]:
        """All entries above `theta`, and of those up to `high` the first `most` of each latent; and
        the index that picks their values."""
        kept = backend(value).thin(self.column, value, theta, high, most)
        support, chosen = self.narrowed(kept)
        return replace(support, near=self.near), chosen

    def times(
        self,
        value: Float[Tensor, " entries"],
        rows: Float[Tensor, "width d"],
        base: Float[Tensor, "#tokens d"],
    ) -> Float[Tensor, "tokens d"]:
        """base + M rows, M the matrix with these values."""
        places = self.starts, self.column, value, self._order
        return backend(value).weighted_rows(*places, rows, rows.new_ones(1), base)

    def transposed_times(
        self,
        value: Float[Tensor, " entries"],
        rows: Float[Tensor, "tokens d"],
        scale: Float[Tensor, "#width"],
        base: Float[Tensor, "#width d"],
    ) -> Float[Tensor, "width d"]:
        """scale base + M^T rows."""
        starts, order, token = self._by_latent
        return backend(value).weighted_rows(starts, token, value, order, rows, scale, base)

    def products(
        self, left: Float[Tensor, "tokens d"], rows: Float[Tensor, "width d"]
    ) -> Float[Tensor, " entries"]:
        """left rows^T at the entries."""
        return backend(left).sampled_products(self.starts, self.column, left, rows)


def above(
    product: Float[Tensor, "tokens width"],
    bias: Float[Tensor, " width"],
    bound: Float[Tensor, " width"],
) -> tuple[Support, Float[Tensor, " entries"]]:
    """The entries of product + bias above `bound`, and those that are no numbers."""
    rows = max(len(product), 1)
    starts, column, value = backend(product).above(product, bias, bound[None], rows)
    return Support(starts, column, product.shape[1]), value


def around(
    product: Float[Tensor, "tokens width"],
    bias: Float[Tensor, " width"],
    ends: Bounds,
    near: Int[Tensor, " width"],
    most: Thinning,
) -> tuple[Support, Float[Tensor, " entries"]]:
    """The entries of product + bias above theta, those that are no numbers, and the first near ones
    of each latent: as many as `most` says and no more than `BLOCK` tokens have beyond that.

    Args:
        near: how many each latent has among earlier tokens; the support's has these tokens, too.
        most: how many are needed, by how many there are so far.
    """
    low, theta, high = ends
    kernels = backend(product)
    count = kernels.count_near(product, bias, low, high, BLOCK)
    total = near + count.sum(0)
    bounds = kernels.bounds_of_first(count, near, most(total), low, theta)
    starts, column, value = kernels.above(product, bias, bounds, BLOCK)
    return Support(starts, column, product.shape[1], total), value


def largest(
    product: Float[Tensor, "tokens width"], bias: Float[Tensor, " width"], k: int
) -> tuple[Support, Float[Tensor, " entries"]]:
    """The k largest entries of each row of product + bias; of equal ones the first."""
    starts, column, value = backend(product).largest(product, bias, k)
    return Support(starts, column, product.shape[1]), value


def first_largest(value: Float[Tensor, " entries"], m: int) -> Bool[Tensor, " entries"]:
    """Which are the m largest; of equal ones the first."""
    return backend(value).first_largest(value, m)


def joined(
    parts: list[tuple[Support, Float[Tensor, " _"]]],
) -> tuple[Support, Float[Tensor, " entries"]]:
    """Supports of consecutive tokens, and their values, as one; `near` is that of the last."""
    if len(parts) == 1:
        return parts[0]
    supports, values = zip(*parts, strict=True)
    counts = torch.cat([support.starts.diff() for support in supports])
    column = torch.cat([support.column for support in supports])
    made = Support(offsets(counts), column, supports[0].width, supports[-1].near)
    return made, torch.cat(values)
