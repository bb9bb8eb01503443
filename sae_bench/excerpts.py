"""Parts of a text: the beginnings of its documents, or the documents after the first ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from sae_bench.components import digest
from sae_bench.documents import Document, Text
from sae_bench.errors import InputError


@dataclass(frozen=True)
class Excerpts(Text):
    """The first `characters` of each document of another text.

    Documents, not tokens, are the independent units of an evaluation. A small token budget filled
    with few long documents gives intervals that mean little.

    Raises:
        InputError: characters is not positive.
    """

    text: Text
    characters: int = 2_000

    def __post_init__(self) -> None:
        if self.characters < 1:
            raise InputError(f"Excerpts: characters must be positive, got {self.characters}")

    def read(self) -> Iterator[Document]:
        """Each document, cut."""
        for document in self.text.read():
            yield replace(document, text=document.text[: self.characters])

    def fingerprint(self) -> str:
        """Of the text and the length."""
        return digest([self.text.fingerprint(), self.characters], 32)


@dataclass(frozen=True)
class After(Text):
    """The documents of another text after its first `skipped`: for tuning on documents that are
    not reported.

    Raises:
        InputError: skipped is negative.
    """

    text: Text
    skipped: int = 3_000

    def __post_init__(self) -> None:
        if self.skipped < 0:
            raise InputError(f"After: skipped must not be negative, got {self.skipped}")

    def read(self) -> Iterator[Document]:
        """All but the first documents."""
        yield from islice(self.text.read(), self.skipped, None)

    def fingerprint(self) -> str:
        """Of the text and the number."""
        return digest([self.text.fingerprint(), "after", self.skipped], 32)
