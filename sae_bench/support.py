"""Where the latents of a batch fired: the places that codes, steps and gradients share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench import sparse_kernels as kernels

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
    near: how many entries near its threshold each latent has, those that were left out included.
    """

    starts: np.ndarray
    column: np.ndarray
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

    @cached_property
    def latents(self) -> Int[Tensor, " entries"]:
        """The latent of each entry."""
        return torch.from_numpy(self.column)

    @cached_property
    def tokens(self) -> Int[Tensor, " entries"]:
        """The token of each entry."""
        every = np.arange(self.rows, dtype=np.int32)
        return torch.from_numpy(np.repeat(every, np.diff(self.starts)))

    @cached_property
    def _order(self) -> np.ndarray:
        return np.arange(len(self))

    @cached_property
    def _by_latent(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return kernels.transpose(self.starts, self.column, self.width)

    def narrowed(
        self, kept: Bool[Tensor, " entries"], first: int = 0, width: int | None = None
    ) -> "Support":
        """Some of the entries, in a matrix of `width` columns that starts at the column `first`."""
        mask = kept.numpy()
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(mask)))
        column = self.column[mask] - np.int32(first)
        return Support(before[self.starts], column, self.width if width is None else width)

    def thinned(
        self,
        value: Float[Tensor, " entries"],
        theta: Float[Tensor, " width"],
        high: Float[Tensor, " width"],
        most: int,
    ) -> tuple["Support", Bool[Tensor, " entries"]]:
        """All entries above `theta`, and of those up to `high` the first `most` of each latent."""
        arrays = self.column, _array(value), _array(theta), _array(high)
        kept = torch.from_numpy(kernels.thin(*arrays, most))
        return replace(self.narrowed(kept), near=self.near), kept

    def times(
        self,
        value: Float[Tensor, " entries"],
        rows: Float[Tensor, "width d"],
        base: Float[Tensor, "#tokens d"],
    ) -> Float[Tensor, "tokens d"]:
        """base + M rows, M the matrix with these values."""
        one = np.ones(1, _array(rows).dtype)
        return torch.from_numpy(
            kernels.weighted_rows(
                self.starts,
                self.column,
                _array(value),
                self._order,
                _array(rows),
                one,
                _array(base),
            )
        )

    def transposed_times(
        self,
        value: Float[Tensor, " entries"],
        rows: Float[Tensor, "tokens d"],
        scale: Float[Tensor, "#width"],
        base: Float[Tensor, "#width d"],
    ) -> Float[Tensor, "width d"]:
        """scale base + M^T rows."""
        starts, order, token = self._by_latent
        arrays = (_array(each) for each in (rows, scale, base))
        return torch.from_numpy(kernels.weighted_rows(starts, token, _array(value), order, *arrays))

    def products(
        self, left: Float[Tensor, "tokens d"], rows: Float[Tensor, "width d"]
    ) -> Float[Tensor, " entries"]:
        """left rows^T at the entries."""
        return torch.from_numpy(
            kernels.sampled_products(self.starts, self.column, _array(left), _array(rows))
        )


def above(
    product: Float[Tensor, "tokens width"],
    bias: Float[Tensor, " width"],
    bound: Float[Tensor, " width"],
) -> tuple[Support, Float[Tensor, " entries"]]:
    """The entries of product + bias above `bound`, and those that are no numbers."""
    arrays = _array(product), _array(bias), _array(bound)[None]
    starts, column, value = kernels.above(*arrays, max(len(product), 1))
    return Support(starts, column, product.shape[1]), torch.from_numpy(value)


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
    low, theta, high = (_array(each) for each in ends)
    arrays = _array(product), _array(bias)
    count = kernels.count_near(*arrays, low, high, BLOCK)
    total = near + torch.from_numpy(count.sum(0))
    bounds = kernels.bounds_of_first(count, _array(near).copy(), most(total), low, theta)
    starts, column, value = kernels.above(*arrays, bounds, BLOCK)
    return Support(starts, column, product.shape[1], total), torch.from_numpy(value)


def largest(
    product: Float[Tensor, "tokens width"], bias: Float[Tensor, " width"], k: int
) -> tuple[Support, Float[Tensor, " entries"]]:
    """The k largest entries of each row of product + bias; of equal ones the first."""
    starts, column, value = kernels.largest(_array(product), _array(bias), k)
    return Support(starts, column, product.shape[1]), torch.from_numpy(value)


def joined(
    parts: list[tuple[Support, Float[Tensor, " _"]]],
) -> tuple[Support, Float[Tensor, " entries"]]:
    """Supports of consecutive tokens, and their values, as one; `near` is that of the last."""
    if len(parts) == 1:
        return parts[0]
    supports, values = zip(*parts, strict=True)
    counts = np.concatenate([np.diff(support.starts) for support in supports])
    column = np.concatenate([support.column for support in supports])
    made = Support(kernels.offsets(counts), column, supports[0].width, supports[-1].near)
    return made, torch.cat(values)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
