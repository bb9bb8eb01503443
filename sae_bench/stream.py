"""Activations that are computed while they are consumed, for token counts that no disk holds."""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.annotations import typed
from sae_bench.cache import ActivationCache
from sae_bench.components import digest
from sae_bench.contexts import Context, ContextPolicy, ordinary
from sae_bench.errors import InputError
from sae_bench.models import DTYPES, LanguageModel
from sae_bench.progress import shown
from sae_bench.reading import DEFAULT_CONTEXT, Pass, Reading
from sae_bench.shards import sum_of_squares
from sae_bench.sites import resolve_site
from sae_bench.source import ActivationSource, checked_scale
from sae_bench.text import Text, resolve_text


class ActivationStream(ActivationSource):
    """The language model fills a buffer on its device and training takes random rows out of it.

    The buffer is filled; rows are served in random order, none twice; when half of the buffer has
    been served, new rows take their places and a new order is drawn. Epochs of the text follow one
    another without end. The same inputs and seed give the same batches.

    Training that goes on from a checkpoint needs the buffer as it was then. The text is read and
    tokenised again up to there, but the model runs only for the rows that are in the buffer, most
    of them from the last few buffers of text (half of what is in it is replaced at a time), and for
    the first buffer.

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
        scale: s, where it is known already; None: that of the first buffer.
        device: where the model runs, if it is loaded here.
        trust_remote_code: whether Python code that comes with the model may run.

    Attributes:
        d_in: width of the activations.

    Raises:
        InputError: an input is unknown or of the wrong type, a held-out cache is of another width,
            the scale is no positive number, or the text has no training documents (on first use).
    """

    @typed()
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
        scale: float | None = None,
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
        self._given_scale = None if scale is None else checked_scale(scale)
        source = resolve_text(text)
        next(source.documents())  # a mistake shows before the model is loaded
        if not isinstance(model, LanguageModel):
            model = LanguageModel.load(
                model, dtype=model_dtype, device=device, trust_remote_code=trust_remote_code
            )
        self._reading = Reading(model, source, context, batch_tokens)
        self._site = resolve_site(model, site)
        if held_out is not None and held_out.d_in != self._site.d_in:
            raise InputError(
                f"held_out has activations of width {held_out.d_in}, those at {site} have "
                f"{self._site.d_in}"
            )
        self._tokens, self._dtype = tokens_in_buffer, dtype
        self._filled: _Buffer | None = None
        self.site = site
        self.d_in = self._site.d_in
        self.held_out = held_out

    @cached_property
    def scale(self) -> float:
        """s: what was given, or sqrt(mean of ||x||^2 over the first buffer), which it fills."""
        if self._given_scale is not None:
            return self._given_scale
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
            "scale": self._given_scale,
        }

    def batches(
        self, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches `start`, `start` + 1, ... of the endless sequence chosen by `seed`: x / s in
        float32, on the device. What the batches before `start` took is skipped as the class says.

        Raises:
            InputError: half of the buffer is less than one batch.
        """
        if not 1 <= batch_size <= self._tokens // 2:
            raise InputError(
                f"batch_size {batch_size} must be between 1 and {self._tokens // 2}, half of "
                "tokens_in_buffer"
            )
        return self._served(batch_size, seed, start)

    def _served(
        self, batch_size: int, seed: int, start: int
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        scale = self.scale
        buffer, self._filled = self._filled or self._buffer(), None
        generator = torch.Generator().manual_seed(seed)
        at_once = self._tokens // 2 // batch_size  # batches between two refills
        refills, start = divmod(start, at_once)

        def drawn() -> Tensor:
            return torch.randperm(self._tokens, generator=generator)[: at_once * batch_size]

        if refills:
            for _ in shown(range(refills), "skipping the stream", refills, "refills"):
                buffer.assign(drawn())
            buffer.fill("filling the buffer again")
        while True:
            served = drawn()
            for chosen in served.to(buffer.rows.device).split(batch_size)[start:]:
                yield buffer.rows[chosen].float() / scale
            start = 0
            buffer.assign(served)
            buffer.fill()

    def _buffer(self) -> "_Buffer":
        device = self._reading.model.device
        rows = torch.empty((self._tokens, self.d_in), dtype=DTYPES[self._dtype], device=device)
        buffer = _Buffer(rows, self._passes(), self._computed)
        buffer.assign(torch.arange(self._tokens))
        buffer.fill("filling the buffer")
        return buffer

    def _passes(self) -> Iterator[Pass]:
        """What the model reads, epoch after epoch of the text."""
        while True:
            yield from self._reading.passes(self._epoch())

    def _computed(self, each: Pass) -> Float[Tensor, "rows d_in"]:
        return self._reading.activations(each, [self._site])[self._site.name]

    def _epoch(self) -> Iterator[Context]:
        tokens = 0
        for context in self._reading.contexts(held_out=False):
            tokens += int(ordinary(context, self._reading.model.special_ids).sum())
            yield context
        if not tokens:
            raise InputError(
                f"{self._reading.text.label} has no training tokens; it needs more documents"
            )


class _Piece:
    """Rows `start` to `stop` of the supply, computed when they are first asked for."""

    def __init__(self, start: int, source: Pass, compute: Callable[[Pass], Tensor]) -> None:
        self.start, self.stop = start, start + source.rows
        self._source, self._compute = source, compute

    @cached_property
    def rows(self) -> Float[Tensor, "rows d_in"]:
        return self._compute(self._source)


class _Buffer:
    """Rows out of an endless supply: which one belongs where is settled by `assign`, and computed
    by `fill` if it is still wanted then."""

    def __init__(
        self,
        rows: Float[Tensor, "tokens d_in"],
        supply: Iterator[Pass],
        compute: Callable[[Pass], Tensor],
    ) -> None:
        self.rows = rows
        self._supply, self._compute = supply, compute
        self._number = np.zeros(len(rows), dtype=np.int64)  # of the row that belongs at a place
        self._is_due = np.zeros(len(rows), dtype=bool)  # and is not there yet
        self._assigned = self._read = 0  # rows of the supply: with a place, in pieces
        self._pieces: list[_Piece] = []  # those with rows that are due or have no place yet

    def assign(self, places: Tensor) -> None:
        """The next rows of the supply belong at `places`."""
        chosen, self._assigned = places.numpy(), self._assigned + len(places)
        self._number[chosen] = np.arange(self._assigned - len(chosen), self._assigned)
        self._is_due[chosen] = True
        while self._read < self._assigned:
            self._pieces.append(_Piece(self._read, next(self._supply), self._compute))
            self._read = self._pieces[-1].stop
        self._forget()

    def fill(self, name: str | None = None) -> None:
        """Puts all rows where they belong; under a name, it shows how far it has come."""
        pieces = self._pieces
        for piece in shown(pieces, name, len(pieces), "passes") if name else pieces:
            places = self._due_of(piece)
            if len(places):
                chosen = torch.from_numpy(self._number[places] - piece.start)
                rows = piece.rows[chosen.to(piece.rows.device)]
                self.rows[torch.from_numpy(places).to(self.rows.device)] = rows.to(self.rows.dtype)
                self._is_due[places] = False
        self._forget()

    def _due_of(self, piece: _Piece) -> np.ndarray:
        within = (self._number >= piece.start) & (self._number < piece.stop)
        return np.flatnonzero(within & self._is_due)

    def _forget(self) -> None:
        """Leaves the pieces that rows are still wanted of."""
        due = np.sort(self._number[self._is_due])
        self._pieces = [
            piece
            for piece in self._pieces
            if piece.stop > self._assigned
            or np.searchsorted(due, piece.start) < np.searchsorted(due, piece.stop)
        ]
