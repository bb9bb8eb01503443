"""A seeded pseudo-random order of n things that is never written down.

A Feistel network permutes the integers of 2h bits, whatever its round function is. Cycle walking
restricts it to range(n): a value outside is permuted again until it falls inside, which takes
fewer than 4 steps on average because 2h is the smallest even number of bits that holds n.
Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from sae_bench.errors import InputError

ROUNDS = 8


class Permutation:
    """A bijection of range(n): position -> value, evaluated point by point.

    No memory grows with n, so it serves 10^9 positions like 10. Equal n and seeds give equal
    permutations on every machine.

    Args:
        n: number of positions, 1 <= n < 2^62.
        seed: one or several integers >= 0 that together choose the permutation.

    Raises:
        InputError: n or the seed is out of range.
    """

    def __init__(self, n: int, seed: int | Sequence[int]) -> None:
        words = [seed] if isinstance(seed, int) else list(seed)
        if not 1 <= n < 2**62:
            raise InputError(f"a permutation needs 1 <= n < 2^62, got n = {n}")
        if any(word < 0 for word in words):
            raise InputError(f"seeds must not be negative, got {seed}")
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.SeedSequence(words).generate_state(ROUNDS, np.uint64)

    def __call__(self, positions: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
        """The values at `positions`, each in range(n)."""
        values = self._rounds(positions.astype(np.uint64))
        while (outside := values >= np.uint64(self.n)).any():
            values[outside] = self._rounds(values[outside])
        return values.astype(np.int64)

    def _rounds(self, values: UInt64[np.ndarray, "k"]) -> UInt64[np.ndarray, "k"]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(bits: UInt64[np.ndarray, "k"]) -> UInt64[np.ndarray, "k"]:
    """The finaliser of SplitMix64: every bit of the input moves every bit of the output."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
