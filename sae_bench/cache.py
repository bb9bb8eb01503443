"""Activations that were computed once and are found again."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from sae_bench.annotations import shown, typed
from sae_bench.background import overlapped
from sae_bench.components import digest
from sae_bench.contexts import Context, ContextPolicy
from sae_bench.devices import default_device
from sae_bench.errors import InputError
from sae_bench.extract import HELD_OUT, TRAINING, extract
from sae_bench.folders import cache_root
from sae_bench.manifest import Manifest
from sae_bench.models import DTYPES, LanguageModel
from sae_bench.norms import Huge
from sae_bench.order import Epochs
from sae_bench.placement import DeviceRows, DiskRows, Placement, Rows, fitting, slices
from sae_bench.reading import DEFAULT_CONTEXT, Reading
from sae_bench.shards import Columns, Shard, sum_of_squares
from sae_bench.sites import resolve_site
from sae_bench.source import ActivationSource, checked_scale
from sae_bench.text import Text, resolve_text

BLOCK = 32  # rows of a shard that are fetched together; their order within the shard is random


class ActivationCache(ActivationSource):
    """Activations of one site, or anyone's own, as a finite source.

    Made by `build`, `open` or `from_tensor`. Training takes shuffled normalised `batches`;
    evaluation takes raw `chunks`.

    Attributes:
        d_in, rows: width and number of the activations.
        held_out: the cache of the held-out documents, None if there is none.
        site: where in the language model the activations were read, None for a tensor.
        folder: where they are stored, both sides of the split (`open` takes it); None for a tensor.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        squares: float,
        block: int,
        about: Mapping[str, Any],
        held_out: "ActivationCache | None" = None,
        folder: Path | None = None,
        model: LanguageModel | None = None,
    ) -> None:
        if not (math.isfinite(squares) and squares > 0):
            raise InputError("activations must be finite and not all zero")
        self.d_in, self.rows = rows.d_in, len(rows)
        self.held_out = held_out
        self.site: str | None = about.get("site")
        self.folder = folder
        self._rows, self._block = rows, block
        self._scale = math.sqrt(squares / self.rows)
        self._about, self._model = dict(about), model

    @classmethod
    @typed("sites")
    def build(
        cls,
        model: str | Path | LanguageModel,
        sites: Sequence[str],
        text: str | Path | Text,
        tokens: int,
        *,
        held_out_tokens: int | None = None,
        context: ContextPolicy = DEFAULT_CONTEXT,
        dtype: str = "float32",
        model_dtype: str = "float32",
        batch_tokens: int = 4096,
        shard_tokens: int = 16384,
        root: str | Path | None = None,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> dict[str, Self]:
        """Caches of several sites from one pass of the model; what exists already is reused.

        A cache is named by its inputs but not by its number of tokens: it holds whole shards and
        serves shorter runs with its first ones. The number of rows is therefore rounded up.

        Args:
            model: a language model, or what `LanguageModel.load` takes.
            sites: names of places in it (see `resolve_site`).
            text: a source of documents, or what `resolve_text` takes.
            tokens: rows of each cache, at least, if the text has so many.
            held_out_tokens: rows of each held-out cache, at least; default: a tenth of `tokens`,
                but at least a shard; 0: no held-out cache.
            context: how documents become contexts.
            dtype: of the stored activations: "float32", "bfloat16" or "float16".
            model_dtype: of the model, if it is loaded here.
            batch_tokens: size of a padded batch of the model; it moves activations by round-off.
            shard_tokens: rows of a shard, at least.
            root: folder of caches; default: "activations" in the user's cache folder.
            device: where the model runs and batches arrive; default: the model's device.
            trust_remote_code: whether Python code that comes with the model may run.

        Returns:
            site -> training cache; its `held_out` is the cache of the held-out documents. A warning
            tells of sites where a few tokens of huge norm hold much of the squared norm (`norms`).

        Raises:
            InputError: an input is unknown, a side of the split has no text, or the disk is full.
        """
        if min(tokens, shard_tokens, batch_tokens) < 1 or (held_out_tokens or 0) < 0:
            raise InputError(
                "tokens, shard_tokens and batch_tokens must be positive, held_out_tokens not "
                f"negative; got {tokens}, {shard_tokens}, {batch_tokens}, {held_out_tokens}"
            )
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        listed = isinstance(sites, list | tuple) and all(isinstance(site, str) for site in sites)
        if not (listed and sites):
            raise InputError(f"sites must be a list of one or more names, got {shown(sites)}")
        wanted = None if device is None else default_device(device)
        source = resolve_text(text)
        next(source.documents())  # a mistake shows before the model is loaded
        if not isinstance(model, LanguageModel):
            model = LanguageModel.load(
                model, dtype=model_dtype, device=device, trust_remote_code=trust_remote_code
            )
        reading = Reading(model, source, context, batch_tokens)
        places = [resolve_site(model, name) for name in dict.fromkeys(sites)]
        target = wanted or model.device
        if held_out_tokens is None:
            held_out_tokens = max(math.ceil(tokens / 10), shard_tokens)

        def side(held_out: bool, wanted: int) -> dict[str, Self]:
            shards = math.ceil(wanted / shard_tokens)
            folders = extract(
                reading,
                places,
                held_out=held_out,
                shards=shards,
                shard_tokens=shard_tokens,
                dtype=dtype,
                root=Path(root or cache_root() / "activations").expanduser(),
            )
            caches = {
                name: cls._stored(folder, shards, target, model) for name, folder in folders.items()
            }
            rows = caches[places[0].name].rows
            if rows < wanted:
                kind = "held-out" if held_out else "training"
                warnings.warn(
                    f"{source.label} ended early: {rows} {kind} tokens instead of {wanted}",
                    stacklevel=4,
                )
            return caches

        # The held-out side first: where it is empty, nothing has been spent yet.
        evaluation: dict[str, Self] = side(True, held_out_tokens) if held_out_tokens else {}
        training: dict[str, Self] = side(False, tokens)
        for name, cache in training.items():
            cache.held_out = evaluation.get(name)
            if found := Huge.among(cache.chunks(8192)).warning(name, cache.columns):
                warnings.warn(found, stacklevel=3)
        return training

    @classmethod
    @typed()
    def open(cls, folder: str | Path, *, device: str | torch.device | None = None) -> Self:
        """The cache in a folder that `build` made, with all its shards.

        Raises:
            InputError: there is none, or it is damaged.
        """
        folder, target = Path(folder).expanduser(), default_device(device)
        if folder.name in (TRAINING, HELD_OUT) and (folder / "manifest.json").exists():
            raise InputError(f"{folder}: is one side of a cache; give the folder {folder.parent}")
        cache = cls._stored(folder / TRAINING, None, target, None)
        if (folder / HELD_OUT / "manifest.json").exists():
            cache.held_out = cls._stored(folder / HELD_OUT, None, target, None)
        return cache

    @classmethod
    @typed("x")
    def from_tensor(
        cls, x: Float[Tensor, "tokens d_in"], *, held_out: float = 0.1, name: str = "tensor"
    ) -> Self:
        """Anyone's own activations, kept in memory where they are; no language model.

        Args:
            x: activations, one row a token.
            held_out: share of the rows, the last ones, that are kept for evaluation. Neighbours
                should be from other documents: order the rows by document.
            name: what records call them.

        Raises:
            InputError: values are not finite or all zero, or a side of the split has no rows.
        """
        if not isinstance(x, Tensor):
            kind = type(x).__name__
            raise InputError(f"activations must be a torch.Tensor, got {kind}; use torch.tensor(x)")
        if x.layout is not torch.strided or x.is_meta:
            raise InputError(
                f"activations must be a dense tensor with values, got {x.layout} on {x.device}"
            )
        if x.ndim != 2 or not x.is_floating_point():
            raise InputError(
                f"activations must be floats (tokens, d_in), got {tuple(x.shape)} of {x.dtype}"
            )
        kept = len(x) - round(held_out * len(x)) if 0 <= held_out < 1 else 0
        if kept < 1 or (held_out > 0 and kept == len(x)):
            raise InputError(
                f"held_out = {held_out} of {len(x)} rows leaves a side without rows; "
                "choose a share between 0 and 1, or 0 for no held-out rows"
            )
        x = x.detach()
        if x.dtype not in DTYPES.values():
            x = x.float()
        content = xxhash.xxh3_128()
        for part in x.split(8192):
            content.update(part.cpu().contiguous().view(torch.uint8).numpy())

        about = {
            "name": name,
            "content": content.hexdigest(),
            "dtype": str(x.dtype).removeprefix("torch."),
        }
        sides = [
            cls(
                DeviceRows(rows),
                squares=sum_of_squares(rows),
                block=1,
                about={**about, "side": side},
            )
            for side, rows in ((TRAINING, x[:kept]), (HELD_OUT, x[kept:]))
            if len(rows)
        ]
        sides[0].held_out = sides[1] if len(sides) > 1 else None
        return sides[0]

    @classmethod
    def _stored(
        cls,
        folder: Path,
        shards: int | None,
        device: torch.device,
        model: LanguageModel | None,
    ) -> Self:
        """The first `shards` shards (None: all) of one side."""
        manifest = Manifest.load(folder)
        chosen = manifest.shards[:shards]
        if not chosen:
            raise InputError(
                f"{folder}: the text has no {folder.name} tokens; it needs more documents "
                "(one in ten is held out), or held_out_tokens=0 for no held-out cache"
            )
        about = {**manifest.inputs, **manifest.provenance, "id": digest(manifest.inputs)}
        return cls(
            DiskRows(chosen, device),
            squares=math.fsum(shard.squares for shard in chosen),
            block=BLOCK,
            about=about,
            folder=folder.parent,
            model=model,
        )

    @property
    def scale(self) -> float:
        """s = sqrt(mean over all rows of ||x||^2), or what `scaled` was given."""
        return self._scale

    def scaled(self, s: float) -> Self:
        """The same cache with batches of x / s. Caches of one site with a common s train in the
        same units: coefficients and thresholds mean the same, E||x||^2 is 1 nearly.

        Raises:
            InputError: s is no positive number.
        """
        changed = copy.copy(self)
        changed._scale = checked_scale(s)
        return changed

    def record(self) -> dict[str, Any]:
        """Identity and provenance, JSON-ready: equal records, equal batches."""
        return {**self._about, "rows": self.rows, "d_in": self.d_in, "scale": self.scale}

    def batches(
        self, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches `start`, `start` + 1, ... of the endless sequence chosen by `seed`: x / s in
        float32, on the device.

        Batch t holds the rows at positions [t B, (t + 1) B) of an endless stream (`Epochs`).

        Raises:
            InputError: the cache has fewer rows than one batch, or the seed is negative.
        """
        if seed < 0:
            raise InputError(f"the seed of the order must not be negative, got {seed}")
        order = Epochs(self.rows, self._block, seed)
        if not 1 <= batch_size <= order.usable:
            raise InputError(
                f"the cache has {order.usable} usable tokens, fewer tokens than one batch of "
                f"{batch_size}; build a longer cache or choose a smaller batch"
                if batch_size > 0
                else f"batch_size must be positive, got {batch_size}"
            )

        def fetch(index: int) -> Float[Tensor, "batch d_in"]:
            positions = np.arange(index * batch_size, (index + 1) * batch_size)
            return self._rows.gather(order(positions)).float() / self.scale

        here = isinstance(self._rows, DeviceRows)
        return map(fetch, count(start)) if here else overlapped(fetch, count(start))

    def chunks(self, size: int) -> Iterator[Float[Tensor, "chunk d_in"]]:
        """All rows in stored order, raw (not divided by s), in float32, on the device."""
        for rows in slices(self.rows, size):
            yield self._rows.gather(rows).float()

    def columns(self) -> Columns:
        """Token, position, document and context (index into `contexts`) of every row in stored
        order.

        Raises:
            InputError: the activations were given as a tensor.
        """
        parts, contexts = [], 0
        for shard in self._files():
            part = shard.columns()
            parts.append(replace(part, context=part.context + contexts))
            contexts += shard.n_contexts()
        return Columns.concatenated(parts)

    def contexts(self, limit_tokens: int | None = None) -> Iterator[Context]:
        """The contexts that the rows come from, in the order of the text, until they have at least
        `limit_tokens` tokens together, special ones included.

        Raises:
            InputError: the activations were given as a tensor.
        """
        tokens = 0
        for shard in self._files():
            for context in shard.contexts():
                if limit_tokens is not None and tokens >= limit_tokens:
                    return
                yield context
                tokens += len(context.ids)

    def _files(self) -> Sequence[Shard]:
        if not self._rows.shards:
            raise InputError(
                "these activations were given as a tensor: their tokens and contexts are unknown"
            )
        return self._rows.shards

    def language_model(self, *, trust_remote_code: bool = False) -> LanguageModel | None:
        """The model that the activations come from: the object that `build` was given, else loaded
        again; None for a tensor.

        Raises:
            InputError: it cannot be found again, or it is another model now.
        """
        if self._model is None and "model" in self._about:
            about = self._about["model"]
            if about["spec"] is None:
                raise InputError(
                    f"model {about['name']} was given as an object and cannot be loaded again; "
                    "call ActivationCache.build with it: the stored activations are reused"
                )
            model = LanguageModel.load(
                about["spec"],
                dtype=about["dtype"],
                device=self._rows.device,
                trust_remote_code=trust_remote_code,
            )
            if model.fingerprint() != about["fingerprint"]:
                raise InputError(
                    f"model {about['spec']!r} is not the one that the activations in {self.folder} "
                    "come from: its weights or tokenizer have changed; build the cache again"
                )
            self._model = model
        return self._model

    @typed()
    def placed(
        self, device: str | torch.device | None = None, placement: Placement | None = None
    ) -> Self:
        """The same cache, held-out rows included, with the rows living elsewhere; the batches are
        the same, bit for bit.

        Args:
            device: where batches arrive; default: as before.
            placement: `DeviceRows`, `HostRows` or `DiskRows`; default: the fastest that fits.
        """
        target = self._rows.device if device is None else default_device(device)
        place = placement or fitting(self._rows, target)
        moved = copy.copy(self)
        moved._rows = place.of(self._rows, target)
        if self.held_out is not None:
            moved.held_out = self.held_out.placed(target, placement)
        return moved
