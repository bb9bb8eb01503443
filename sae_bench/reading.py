"""How a language model reads a text: the one path that caches and streams share.

documents -> one side of the split -> token ids -> contexts -> padded batches -> the language
model, up to the deepest site -> the rows at ordinary positions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_bench.contexts import (
    Context,
    ContextPolicy,
    Packed,
    PaddedBatch,
    ordinary,
    padded_batches,
)
from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.progress import Progress
from sae_bench.shards import Columns
from sae_bench.sites import Site, capture
from sae_bench.text import Text, is_held_out

DOCUMENTS_AT_ONCE = 32  # are tokenised together
DEFAULT_CONTEXT = Packed()
WINDOW = 256  # contexts are ordered by length together, so that little is padded


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass of the model reads, and which of its positions are ordinary: a row each."""

    batch: PaddedBatch
    kept: Bool[np.ndarray, "batch length"]

    @property
    def rows(self) -> int:
        """Number of rows that it gives."""
        return int(self.kept.sum())


@dataclass(frozen=True)
class Reading:
    """A text as a language model reads it. The training and the held-out side of the split share
    no document."""

    model: LanguageModel
    text: Text
    context: ContextPolicy
    batch_tokens: int = 4096

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines the contexts and their activations, JSON-ready."""
        return {
            "model": self.model.fingerprint(),
            "text": self.text.fingerprint(),
            "context": self.context.record(),
        }

    def provenance(self) -> dict[str, Any]:
        """What helps to find the model and the text again, JSON-ready."""
        return {"model": self.model.record(), "text": self.text.record()}

    def contexts(self, held_out: bool) -> Iterator[Context]:
        """The contexts of one side, in the order of the text.

        Raises:
            InputError: a context is longer than the model's position embeddings.
        """
        config = self.model.model.config.get_text_config(decoder=True)
        limit = getattr(config, "max_position_embeddings", None)
        for context in self.context.contexts(
            self._documents(held_out), self.model.bos_id, self.model.eos_id
        ):
            if limit is not None and len(context.ids) > limit:
                raise InputError(
                    f"{self.context.label}: a context of {len(context.ids)} tokens is too long for "
                    f"{self.model.name}, which has {limit} positions; choose shorter contexts"
                )
            yield context

    def _documents(self, held_out: bool) -> Iterator[tuple[int, Sequence[int]]]:
        chosen = (
            (index, document.text)
            for index, document in enumerate(self.text.documents())
            if is_held_out(document) == held_out
        )
        while group := list(islice(chosen, DOCUMENTS_AT_ONCE)):
            encoded = self.model.encode([text for _, text in group])
            yield from ((index, ids) for (index, _), ids in zip(group, encoded, strict=True))

    def shards(self, held_out: bool, shard_tokens: int) -> Iterator[list[Context]]:
        """The contexts of shard 0, 1, ... of one side: as few as have `shard_tokens` ordinary
        tokens together; the last shard may have fewer tokens."""
        contexts: list[Context] = []
        tokens = 0
        for context in self.contexts(held_out):
            contexts.append(context)
            tokens += int(ordinary(context, self.model.special_ids).sum())
            if tokens >= shard_tokens:
                yield contexts
                contexts, tokens = [], 0
        if tokens:
            yield contexts

    def rows(
        self, contexts: Iterable[Context], sites: Sequence[Site]
    ) -> Iterator[tuple[dict[str, Float[Tensor, "rows _"]], Columns]]:
        """Activations at the ordinary positions, batch by batch: site name -> rows, and columns.

        The column `context` counts the contexts in the order in which they come out of
        `padded_batches`.
        """
        seen = 0
        for each in self.passes(contexts):
            context, position = np.nonzero(each.kept)
            columns = Columns(
                token=each.batch.ids[each.kept].astype(np.int32),
                position=position.astype(np.int32),
                document=each.batch.documents[each.kept],
                context=context + seen,
            )
            seen += len(each.kept)
            yield self.activations(each, sites), columns

    def passes(self, contexts: Iterable[Context]) -> Iterator["Pass"]:
        """The passes that the model takes over the contexts; it has not run yet."""
        for batch in padded_batches(contexts, self.batch_tokens, self.model.pad_id, WINDOW):
            yield Pass(batch, ordinary(batch, self.model.special_ids))

    def activations(
        self, each: "Pass", sites: Sequence[Site]
    ) -> dict[str, Float[Tensor, "rows _"]]:
        """Runs the model: site name -> the rows of a pass."""
        ids, mask, kept = (
            torch.from_numpy(array).to(self.model.device)
            for array in (each.batch.ids, each.batch.mask, each.kept)
        )
        captured = capture(self.model, ids, mask, sites)
        return {name: values[kept] for name, values in captured.items()}

    def shard_rows(
        self,
        contexts: Sequence[Context],
        sites: Sequence[Site],
        dtype: torch.dtype,
        progress: Progress,
    ) -> tuple[dict[str, Float[Tensor, "rows _"]], Columns]:
        """Rows of one shard on the host, in the order of its contexts, and their columns.

        Args:
            contexts: of the shard.
            sites: names of these are the keys of the rows.
            dtype: of the rows.
            progress: told the number of rows of every batch.
        """
        by_length = sorted(range(len(contexts)), key=lambda index: len(contexts[index].ids))
        parts: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        found: list[Columns] = []
        for activations, part in self.rows((contexts[index] for index in by_length), sites):
            found.append(part)
            for name, rows in activations.items():
                parts[name].append(rows.to("cpu", dtype))
            progress.update(len(part.token))
        columns = Columns.concatenated(found)
        columns = replace(columns, context=np.asarray(by_length)[columns.context])
        order = np.lexsort((columns.position, columns.context))
        chosen = torch.from_numpy(order)
        return {name: torch.cat(rows)[chosen] for name, rows in parts.items()}, columns.take(order)
