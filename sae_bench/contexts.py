"""From documents to rows for the language model: how they are cut, batched, and what counts.

Token ids are numpy int64; `BOS` is the id that starts a context, None where the model has none.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np
from jaxtyping import Bool, Int, Int64

from sae_bench.components import Component
from sae_bench.errors import InputError

INSERTED = -1
"""Stands for the document of a token that is in none (BOS, separator, padding) or is only read."""

Tokens = Sequence[int] | Int[np.ndarray, "tokens"]


@dataclass(frozen=True, eq=False)
class Context:
    """One row for the language model, not padded.

    Args:
        ids: token ids, BOS included where there is one.
        documents: index of the document that each token came from; -1 for an inserted one and for
            one that does not count.
    """

    ids: Int64[np.ndarray, "length"]
    documents: Int64[np.ndarray, "length"]


class ContextPolicy(Component, ABC):
    """How documents are cut into contexts. Lengths count tokens, the BOS among them."""

    @abstractmethod
    def contexts(
        self, documents: Iterable[tuple[int, Tokens]], bos: int | None, separator: int | None
    ) -> Iterator[Context]:
        """Contexts in the order of the documents, made as they are asked for.

        Args:
            documents: pairs (index, token ids without special tokens), read once.
            bos: put at the start of every context; None for no such token.
            separator: put between documents that share a context; None for nothing between them.
        """


@dataclass(frozen=True)
class Packed(ContextPolicy):
    """Every context is full: BOS and the next `length - 1` tokens of all documents one after the
    other, the separator between any two. Attention crosses from a document into the next one in
    its context. The last tokens, too few for a context, are dropped."""

    length: int = 256

    def __post_init__(self) -> None:
        _check_at_least("Packed.length", self.length, 2)

    def contexts(
        self, documents: Iterable[tuple[int, Tokens]], bos: int | None, separator: int | None
    ) -> Iterator[Context]:
        """See `ContextPolicy.contexts`."""
        room = self.length - (bos is not None)
        between = _row([] if separator is None else [separator])
        ids = sources = _row([])  # what no context has taken yet
        for number, (index, tokens) in enumerate(_filled(documents)):
            added = np.concatenate([between, tokens]) if number else tokens
            source = _constant(len(added), index)
            source[: len(added) - len(tokens)] = INSERTED
            ids, sources = np.concatenate([ids, added]), np.concatenate([sources, source])
            full = len(ids) - len(ids) % room
            for start in range(0, full, room):
                yield _context(ids[start : start + room], sources[start : start + room], bos)
            ids, sources = ids[full:], sources[full:]


@dataclass(frozen=True)
class PerDocument(ContextPolicy):
    """Each document is cut into BOS and `length - 1` tokens, over and over; its last piece is
    shorter, and dropped if it holds fewer than two tokens beside the BOS (nothing to predict).
    Nothing crosses documents."""

    length: int = 256

    def __post_init__(self) -> None:
        _check_at_least("PerDocument.length", self.length, 3)

    def contexts(
        self, documents: Iterable[tuple[int, Tokens]], bos: int | None, separator: int | None
    ) -> Iterator[Context]:
        """See `ContextPolicy.contexts`; the separator is not used."""
        for index, tokens in _filled(documents):
            yield from _cut(tokens, index, repeat(self.length), bos)


@dataclass(frozen=True)
class VariableLength(ContextPolicy):
    """Like `PerDocument`, with a length drawn for each piece: log-uniform from `low` to `high`,
    both included, P(n) = log((n+1)/n) / log((high+1)/low). A document's last piece holds what is
    left, so it may be shorter than drawn, and than `low`. Draws depend on the seed and on the
    document's index alone, never on the other documents."""

    low: int = 16
    high: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        _check_at_least("VariableLength.low", self.low, 3)
        _check_at_least("VariableLength.high", self.high, self.low)
        _check_at_least("VariableLength.seed", self.seed, 0)

    def contexts(
        self, documents: Iterable[tuple[int, Tokens]], bos: int | None, separator: int | None
    ) -> Iterator[Context]:
        """See `ContextPolicy.contexts`; the separator is not used."""
        for index, tokens in _filled(documents):
            yield from _cut(tokens, index, self.lengths(index), bos)

    def lengths(self, index: int) -> Iterator[int]:
        """The lengths of a document's pieces, without end."""
        generator = np.random.default_rng([self.seed, index])
        while True:
            drawn = np.exp(generator.uniform(np.log(self.low), np.log(self.high + 1)))
            yield min(max(int(drawn), self.low), self.high)  # rounding may step out by a hair


@dataclass(frozen=True)
class Settled(ContextPolicy):
    """The contexts of another policy, whose first positions are read and do not count: the language
    model sees them; they are neither trained on nor measured nor scored, and keep their activations
    where reconstructions are spliced in.

    Behind the middle of many models the first tokens of some contexts have norms of up to 100 times
    the median, as their BOS has in all (attention sinks: Sun et al. 2024, arXiv 2402.17762). So few
    of them hold so much of the squared norm that SAEs fit them and little else.

    Args:
        policy: cuts the contexts.
        first: position from which on tokens count; BOS is at 0.
    """

    policy: ContextPolicy
    first: int = 8

    def __post_init__(self) -> None:
        _check_at_least("Settled.first", self.first, 1)

    def contexts(
        self, documents: Iterable[tuple[int, Tokens]], bos: int | None, separator: int | None
    ) -> Iterator[Context]:
        """See `ContextPolicy.contexts`."""
        for context in self.policy.contexts(documents, bos, separator):
            read = np.arange(len(context.ids)) < self.first
            yield Context(context.ids, np.where(read, INSERTED, context.documents))


def _filled(
    documents: Iterable[tuple[int, Tokens]],
) -> Iterator[tuple[int, Int64[np.ndarray, "tokens"]]]:
    """The documents that have any tokens, as arrays."""
    for index, tokens in documents:
        if len(tokens):
            yield index, _row(tokens)


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Contexts as a rectangle, padded on the right.

    Args:
        ids: token ids, the pad id behind the end.
        mask: True on the positions of the contexts, BOS included; False on padding.
        documents: as in `Context`; -1 for padding.
    """

    ids: Int64[np.ndarray, "batch length"]
    mask: Bool[np.ndarray, "batch length"]
    documents: Int64[np.ndarray, "batch length"]


def ordinary(tokens: Context | PaddedBatch, special: Collection[int]) -> Bool[np.ndarray, "*shape"]:
    """Which positions count: those of tokens that belong to a document and are not special. Padding
    does not.

    The one rule for training, normalisation, L0, FVU, frequencies and cross-entropy alike.

    Args:
        tokens: a context or a batch of them.
        special: ids of BOS, EOS, pad and every other special token of the tokenizer.
    """
    unusual = np.isin(tokens.ids, np.fromiter(special, np.int64))
    return (tokens.documents != INSERTED) & ~unusual


def padded_batches(
    contexts: Iterable[Context], tokens: int, pad: int, window: int = 64
) -> Iterator[PaddedBatch]:
    """Batches of at most `tokens` positions, padding counted, and of at least one context.

    Each run of `window` contexts is ordered by length (equal lengths keep their order), so that
    a batch's contexts are about equally long and little is padded. No batch spans two runs.

    Raises:
        InputError: `tokens` or `window` is below 1.
    """
    _check_at_least("tokens a batch", tokens, 1)
    _check_at_least("window", window, 1)
    remaining = iter(contexts)
    while run := sorted(islice(remaining, window), key=lambda context: len(context.ids)):
        batch: list[Context] = []
        for context in run:
            if batch and (len(batch) + 1) * len(context.ids) > tokens:
                yield _padded(batch, pad)
                batch = []
            batch.append(context)
        yield _padded(batch, pad)


def _padded(contexts: list[Context], pad: int) -> PaddedBatch:
    lengths = np.array([len(context.ids) for context in contexts])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids, documents = _constant(mask.shape, pad), _constant(mask.shape, INSERTED)
    ids[mask] = np.concatenate([context.ids for context in contexts])
    documents[mask] = np.concatenate([context.documents for context in contexts])
    return PaddedBatch(ids, mask, documents)


def _cut(
    tokens: Int64[np.ndarray, "tokens"], index: int, lengths: Iterator[int], bos: int | None
) -> Iterator[Context]:
    start = 0
    while start < len(tokens) - 1:
        stop = start + next(lengths) - (bos is not None)
        piece = tokens[start:stop]
        yield _context(piece, _constant(len(piece), index), bos)
        start = stop


def _context(
    ids: Int64[np.ndarray, "tokens"], documents: Int64[np.ndarray, "tokens"], bos: int | None
) -> Context:
    if bos is None:
        return Context(ids, documents)
    return Context(
        np.concatenate([_row([bos]), ids]), np.concatenate([_row([INSERTED]), documents])
    )


def _row(tokens: Tokens) -> Int64[np.ndarray, "tokens"]:
    return np.asarray(tokens, dtype=np.int64)


def _constant(shape: int | tuple[int, ...], value: int) -> Int64[np.ndarray, "..."]:
    return np.full(shape, value, dtype=np.int64)


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number, at least {least}; got {value!r}")
