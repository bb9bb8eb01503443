"""The order in which training visits stored rows: an endless stream of epochs, each a seeded
pseudo-random order of blocks, of which nothing is written down."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from sae_bench.permutation import Permutation


@dataclass(frozen=True)
class Epochs:
    """Position -> row. An epoch visits each whole block of rows once, in an order of (seed, epoch),
    the rows of a block one after the other; rows left over are not visited.

    Args:
        rows: number of rows, at least one block.
        block: rows that are visited together.
        seed: at least 0.
    """

    rows: int
    block: int
    seed: int

    @property
    def usable(self) -> int:
        """Rows of an epoch."""
        return self.rows // self.block * self.block

    def __call__(self, positions: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
        """The rows at `positions`, counted from 0 over all epochs."""
        epochs, within = np.divmod(positions, self.usable)
        block, offset = np.divmod(within, self.block)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = Permutation(self.usable // self.block, (self.seed, int(epoch)))
            block[here] = order(block[here])
        return block * self.block + offset
