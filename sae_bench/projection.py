"""Pre-activations of a batch, computed only where they are asked for."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sae_bench.sparse_functions import encoded
from sae_bench.support import Bounds, Support, Thinning, above, around, joined, largest

ROWS = 1024
"""Tokens whose pre-activations are in memory at once."""


class NeedsDense(Exception):
    """A step that cannot be computed on entries alone.

    lasting: whether that lies in the code, and not in how many latents fired.
    """

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


@dataclass(frozen=True)
class Reach:
    """Which entries a step needs.

    Args:
        margin: those less than this below their threshold, in units of the pre-activations.
        samples: of those within the margin on both sides, how many of each latent are needed, by
            how many it has: below the threshold only the first so many; None: all.
        most: share of all entries up to which there may be.
    """

    margin: float | Float[Tensor, " d_sae"]
    samples: Thinning | None
    most: float


@dataclass(frozen=True, eq=False)
class Projection:
    """(x - b_dec) W + b, and what has been computed of it."""

    x: Float[Tensor, "tokens d_in"]
    W: Float[Tensor, "d_in d_sae"]
    b: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    reach: Reach
    found: dict[Support, Float[Tensor, " _"]] = field(default_factory=dict)
    searched: list[tuple[Support, Float[Tensor, " d_sae"]]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return len(self.x), self.W.shape[1]

    @torch.no_grad()
    def above(self, bound: Float[Tensor, " d_sae"]) -> Support:
        """The support of what is above `bound`.

        Raises:
            NeedsDense: that is too much.
        """
        for support, known in self.searched:
            if torch.equal(bound, known):
                return support
        bias = self._bias()
        support = self.keep(*self._joined(above(each, bias, bound) for each in self._products()))
        self.searched.append((support, bound))
        return support

    @torch.no_grad()
    def around(self, bounds: Bounds, most: Thinning) -> Support:
        """The support of what is above theta, and of the first near entries of each latent.

        Raises:
            NeedsDense: that is too much.
        """
        support, value = self._joined(self._around(bounds, most))
        assert support.near is not None
        support, chosen = support.thinned(value, bounds.theta, bounds.high, most(support.near))
        return self.keep(support, value[chosen])

    def _around(
        self, bounds: Bounds, most: Thinning
    ) -> Iterator[tuple[Support, Float[Tensor, " _"]]]:
        bias = self._bias()
        near = torch.zeros(self.shape[1], dtype=torch.int64, device=self.x.device)
        for product in self._products():
            support, value = around(product, bias, bounds, near, most)
            yield support, value
            assert support.near is not None
            near = support.near

    def _joined(
        self, parts: Iterable[tuple[Support, Float[Tensor, " _"]]]
    ) -> tuple[Support, Float[Tensor, " entries"]]:
        kept, found = [], 0
        for part in parts:
            kept.append(part)
            found += len(part[0])
            if found > self.reach.most * self.shape[0] * self.shape[1]:
                raise NeedsDense("too many latents fired", lasting=False)
        return joined(kept)

    @torch.no_grad()
    def largest(self, k: int) -> Support:
        """The support of the k largest of each row."""
        if k > self.reach.most * self.shape[1]:
            raise NeedsDense("k is too large a share of d_sae")
        bias = self._bias()
        return self.keep(*joined([largest(product, bias, k) for product in self._products()]))

    @torch.no_grad()
    def first(self, rows: int) -> Float[Tensor, "rows d_sae"]:
        """The first rows, without a gradient."""
        return torch.addmm(self._bias(), self.x[:rows], self.W)

    @torch.no_grad()
    def at(self, support: Support) -> Float[Tensor, " entries"]:
        """The values of any entries."""
        if support not in self.found:
            products = support.products(self.x, self.W.T)
            self.keep(support, products + self._bias()[support.latents])
        return self.found[support]

    @torch.enable_grad()
    def keep(self, support: Support, value: Float[Tensor, " entries"]) -> Support:
        """Takes note of the values of entries."""
        self.found[support] = encoded(self.x, self.W, self.b, self.b_dec, support, value)
        return support

    def columns(self, index: Shaped[Tensor, " columns"]) -> Float[Tensor, "tokens columns"]:
        """Some columns, as an ordinary tensor."""
        W = self.W.index_select(1, index)
        return torch.addmm(self.b.index_select(0, index) - self.b_dec @ W, self.x, W)

    def detached(self) -> "Projection":
        """The same without gradients."""
        x, W, b, b_dec = (each.detach() for each in (self.x, self.W, self.b, self.b_dec))
        return Projection(x, W, b, b_dec, self.reach)

    def _bias(self) -> Float[Tensor, " d_sae"]:
        return self.b - self.b_dec @ self.W

    def _products(self) -> Iterator[Float[Tensor, "rows d_sae"]]:
        """x W, some rows at a time, in the same memory."""
        memory = self.x.new_empty(min(ROWS, len(self.x)), self.W.shape[1])
        for x in self.x.split(ROWS):
            yield torch.mm(x, self.W, out=memory[: len(x)])
