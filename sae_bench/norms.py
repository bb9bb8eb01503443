"""Tokens of huge norm among activations: few, and much of what an SAE is trained to reconstruct."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from sae_bench.shards import Columns

HUGE = 10
"""Multiples of the median norm above which a token's is huge."""
MUCH = 0.05
"""Share of the sum over tokens of ||x||^2 that huge norms may hold without a word."""
SAMPLE = 65_536
"""Tokens that are looked at."""


@dataclass(frozen=True)
class Huge:
    """The norms of the first tokens, and which are more than `HUGE` times their median.

    Args:
        norms: ||x|| of each.
        median: theirs.
        found: which are huge.
    """

    norms: Float[np.ndarray, " tokens"]
    median: float
    found: Bool[np.ndarray, " tokens"]

    @classmethod
    def among(cls, chunks: Iterable[Float[Tensor, "chunk d_in"]]) -> Self:
        """Those of the first `SAMPLE` tokens of activations."""
        parts, seen = [], 0
        for chunk in chunks:
            parts.append(chunk[: SAMPLE - seen].norm(dim=1).double().cpu().numpy())
            seen += len(parts[-1])
            if seen >= SAMPLE:
                break
        norms = np.concatenate(parts)
        median = float(np.median(norms))
        return cls(norms, median, norms > HUGE * median)

    @property
    def share(self) -> float:
        """Of the sum over tokens of ||x||^2: what the huge ones hold."""
        squares = np.square(self.norms)
        return float(squares[self.found].sum() / squares.sum())

    def warning(self, where: str, columns: Callable[[], Columns]) -> str | None:
        """What to say of them, if they hold more than `MUCH`.

        Args:
            where: the name of the site.
            columns: reads where the tokens stand; asked only if something is said.
        """
        if not self.share > MUCH:
            return None
        huge = self.norms[self.found]
        place = columns().position[: len(self.norms)][self.found]
        return (
            f"{len(huge)} of {len(self.norms):,} tokens of {where}, at positions {place.min()} to "
            f"{place.max()} of their contexts, have norms of {huge.min():,.0f} to "
            f"{huge.max():,.0f} (median {self.median:,.0f}) and hold {self.share:.0%} of the "
            "squared norm, which SAEs are trained to reconstruct; Settled(policy, first=n) leaves "
            "out the first n positions of each context"
        )
