"""Tokens of huge norm among activations: few, and much of what an SAE is trained to reconstruct."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int32
from torch import Tensor

HUGE = 10
"""Multiples of the median norm above which a token's is huge."""
MUCH = 0.05
"""Share of the sum over tokens of ||x||^2 that huge norms may hold without a word."""
SAMPLE = 65_536
"""Tokens that are looked at."""


@dataclass(frozen=True)
class Huge:
    """What tokens of more than `HUGE` times the median norm there are.

    Args:
        tokens: that were looked at, the first of the activations.
        median: of ||x||.
        norms: of the huge ones.
        share: of the sum over all tokens of ||x||^2 that they hold.
        positions: theirs in their contexts (BOS = 0).
    """

    tokens: int
    median: float
    norms: Float[np.ndarray, " huge"]
    share: float
    positions: Int32[np.ndarray, " huge"]

    @classmethod
    def among(
        cls, chunks: Iterable[Float[Tensor, "chunk d_in"]], positions: Int32[np.ndarray, " rows"]
    ) -> Self:
        """Those of the first `SAMPLE` tokens.

        Args:
            chunks: of activations in stored order.
            positions: of all their rows.
        """
        parts, seen = [], 0
        for chunk in chunks:
            parts.append(chunk[: SAMPLE - seen].norm(dim=1).double().cpu().numpy())
            seen += len(parts[-1])
            if seen >= SAMPLE:
                break
        norms = np.concatenate(parts)
        median = float(np.median(norms))
        huge = norms > HUGE * median
        squares = np.square(norms)
        share = float(squares[huge].sum() / squares.sum())
        return cls(len(norms), median, norms[huge], share, positions[: len(norms)][huge])

    def warning(self, where: str) -> str | None:
        """What to say of them, if they hold more than `MUCH`."""
        if not self.share > MUCH:
            return None
        first, last = self.positions.min(), self.positions.max()
        found = f"{len(self.norms)} of {self.tokens:,} tokens of {where}, at positions "
        found += f"{first} to {last} of their contexts, have norms of {self.norms.min():,.0f} to "
        found += f"{self.norms.max():,.0f} (median {self.median:,.0f}) and hold {self.share:.0%} "
        return found + (
            "of the squared norm: SAEs fit them and little else; contexts of Settled(policy, "
            "first=n) leave out the first n positions"
        )
