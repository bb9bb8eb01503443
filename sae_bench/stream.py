"""Activations that are computed while they are consumed, for token counts that no disk holds."""

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.cache import ActivationCache
from sae_bench.components import digest
from sae_bench.contexts import Context, ContextPolicy, ordinary
from sae_bench.errors import InputError
from sae_bench.models import DTYPES, LanguageModel
from sae_bench.reading import DEFAULT_CONTEXT, Reading
from sae_bench.shards import sum_of_squares
from sae_bench.sites import resolve_site
from sae_bench.source import ActivationSource
from sae_bench.text import Text, resolve_text


class ActivationStream(ActivationSource):
    """The language model fills a buffer on its device and training takes random rows out of it.

    The buffer is filled; rows are served in random order, none twice; when half of the buffer has
    been served, new rows take their places and a new order is drawn. Epochs of the text follow one
    another without end. The same inputs and seed give the same batches.

    Args:
        model: a language model, or what `LanguageModel.load` takes.
        site: name of a place in it (see `resolve_site`).
        text: a source of documents, or what `resolve_text` takes; its held-out documents are left
            out, as they are from caches.
        context: how documents become contexts.
        tokens_in_buffer: rows of the buffer; neighbours in the text are spread over as many.
        dtype: of the buffer: "float32", "bfloat16" or "float16".
        model_dtype: of the model, if it is loaded here.
        batch_tokens: size of a padded batch of the model.
        held_out: a cache of held-out documents, for evaluation.
        device: where the model runs, if it is loaded here.
        trust_remote_code: whether Python code that comes with the model may run.

    Attributes:
        d_in: width of the activations.

    Raises:
        InputError: an input is unknown, or the text has no training documents (on first use).
    """

    def __init__(
        self,
        model: str | Path | LanguageModel,
        site: str,
        text: str | Path | Text,
        *,
        context: ContextPolicy = DEFAULT_CONTEXT,
        tokens_in_buffer: int = 2**18,
        dtype: str = "float32",
        model_dtype: str = "float32",
        batch_tokens: int = 4096,
        held_out: ActivationCache | None = None,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if tokens_in_buffer < 2 or batch_tokens < 1:
            raise InputError(
                "tokens_in_buffer must be at least 2 and batch_tokens at least 1, "
                f"got {tokens_in_buffer} and {batch_tokens}"
            )
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        source = resolve_text(text)
        next(source.documents())  # a mistake shows before the model is loaded
        if not isinstance(model, LanguageModel):
            model = LanguageModel.load(
                model, dtype=model_dtype, device=device, trust_remote_code=trust_remote_code
            )
        self._reading = Reading(model, source, context, batch_tokens)
        self._site = resolve_site(model, site)
        self._tokens, self._dtype = tokens_in_buffer, dtype
        self._filled: _Buffer | None = None
        self.site = site
        self.d_in = self._site.d_in
        self.held_out = held_out

    @cached_property
    def scale(self) -> float:
        """s = sqrt(mean of ||x||^2 over the first buffer); reading it fills the buffer."""
        self._filled = self._buffer()  # kept for the first `batches`
        scale = math.sqrt(sum_of_squares(self._filled.rows) / self._tokens)
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"activations at {self.site} are not finite in {self._dtype}, or zero")
        return scale

    def language_model(self) -> LanguageModel:
        """The model that fills the buffer."""
        return self._reading.model

    def record(self) -> dict[str, Any]:
        """Identity and provenance, JSON-ready: equal records, equal batches."""
        return {
            **self._reading.identity,
            **self._reading.provenance(),
            "id": digest(self._reading.identity),
            "site": self.site,
            "dtype": self._dtype,
            "batch_tokens": self._reading.batch_tokens,
            "tokens_in_buffer": self._tokens,
        }

    def batches(
        self, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches `start`, `start` + 1, ... of the endless sequence chosen by `seed`: x / s in
        float32, on the device. The batches before `start` are computed again to get there.

        Raises:
            InputError: half of the buffer is less than one batch.
        """
        if not 1 <= batch_size <= self._tokens // 2:
            raise InputError(
                f"batch_size {batch_size} must be between 1 and {self._tokens // 2}, half of "
                "tokens_in_buffer"
            )
        return islice(self._served(batch_size, seed), start, None)

    def _served(self, batch_size: int, seed: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        scale = self.scale
        buffer, self._filled = self._filled or self._buffer(), None
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(self._tokens, generator=generator).to(buffer.rows.device)
            served = order[: self._tokens // 2 // batch_size * batch_size]
            for chosen in served.split(batch_size):
                yield buffer.rows[chosen].float() / scale
            buffer.refill(served)

    def _buffer(self) -> "_Buffer":
        device = self._reading.model.device
        rows = torch.empty((self._tokens, self.d_in), dtype=DTYPES[self._dtype], device=device)
        buffer = _Buffer(rows, self._computed())
        buffer.refill(torch.arange(self._tokens, device=device))
        return buffer

    def _computed(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """New rows without end, epoch after epoch of the text."""
        while True:
            for activations, _ in self._reading.rows(self._epoch(), [self._site]):
                yield activations[self._site.name]

    def _epoch(self) -> Iterator[Context]:
        tokens = 0
        for context in self._reading.contexts(held_out=False):
            tokens += int(ordinary(context.ids, self._reading.model.special_ids).sum())
            yield context
        if not tokens:
            raise InputError(
                f"{self._reading.text.label} has no training tokens; it needs more documents"
            )


class _Buffer:
    """Rows, and the endless supply of new ones that follow them."""

    def __init__(
        self,
        rows: Float[Tensor, "tokens d_in"],
        supply: Iterator[Float[Tensor, "rows d_in"]],
    ) -> None:
        self.rows = rows
        self._supply = supply
        self._left = rows[:0]  # what the last step of the supply had too many

    def refill(self, places: Tensor) -> None:
        """Put new rows at `places`."""
        while len(places):
            if not len(self._left):
                self._left = next(self._supply)
            taken = self._left[: len(places)]
            self.rows[places[: len(taken)]] = taken.to(self.rows.dtype)
            places, self._left = places[len(taken) :], self._left[len(taken) :]
