"""What a text source is: a stream of documents in a fixed order, and a name for their content."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from sae_bench.components import Component
from sae_bench.errors import InputError


@dataclass(frozen=True)
class Document:
    """One document: a stable name (`numpy/linalg`, `corpus.jsonl:17`) and its text. The text is
    valid Unicode: lone surrogates, which no tokenizer takes, become question marks."""

    id: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text.encode(errors="replace").decode())

    @classmethod
    def from_row(cls, id: str, row: Any, field: str) -> "Document":
        """The document in one field of a table's row; a null is an empty text.

        Raises:
            InputError: the row has no such field, or it holds something else than text.
        """
        if not isinstance(row, Mapping) or field not in row:
            has = ", ".join(map(str, row)) if isinstance(row, Mapping) else "no fields at all"
            raise InputError(f"{id}: no field {field!r} (it has {has}); name another with field=")
        text = "" if row[field] is None else row[field]
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"{id}: field {field!r} holds {kind}, not text; name another, field=")
        return cls(id, text)


class Text(Component, ABC):
    """A source of documents. A subclass says how they are read and what names their content."""

    def documents(self) -> Iterator[Document]:
        """The documents that are not blank, in the same order each time, read as they are asked
        for: memory holds one of them (or one batch of rows), however long the corpus.

        Raises:
            InputError: the source cannot be read, or all of it is blank.
        """
        empty = True
        for document in self.read():
            if document.text.strip():
                empty = False
                yield document
        if empty:
            raise InputError(f"{self.label}: the corpus is empty, no document has any text in it")

    @abstractmethod
    def read(self) -> Iterator[Document]:
        """All documents, blank ones included."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal name of the content: equal fingerprints, equal documents.

        Raises:
            InputError: the source cannot be read.
        """


def is_held_out(document: Document, share: float = 0.1) -> bool:
    """Whether a document belongs to the evaluation split, which gets `share` of all documents.

    A hash of the text decides: no list has to be kept, the split does not depend on the order or
    on what else is in the corpus, and copies of one text fall on the same side.
    """
    return xxhash.xxh3_64_intdigest(document.text.encode(), seed=1) < share * 2**64


def content_hash(documents: list[Document]) -> str:
    """Hexadecimal hash of names and texts (128 bits)."""
    state = xxhash.xxh3_128()
    for document in documents:
        for part in (document.id.encode(), document.text.encode()):
            state.update(len(part).to_bytes(8, "little"))
            state.update(part)
    return state.hexdigest()
