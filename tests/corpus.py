"""A text of random letters, to be read by the tiny language models."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sae_bench.components import digest
from sae_bench.documents import Document, Text

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz ,."))


@dataclass(frozen=True)
class Letters(Text):
    """`n` documents of up to 120 letters, a few of them empty-ish."""

    n: int = 80
    seed: int = 0

    def read(self) -> Iterator[Document]:
        generator = np.random.default_rng(self.seed)
        for index in range(self.n):
            letters = generator.choice(LETTERS, size=generator.integers(3, 120))
            yield Document(str(index), f"{index} " + "".join(letters))

    def fingerprint(self) -> str:
        return digest(self, 32)
