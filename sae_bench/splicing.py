"""What an SAE costs the language model: its loss with reconstructions spliced in at the site."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.cache import ActivationCache
from sae_bench.contexts import Context, ordinary, padded_batches
from sae_bench.models import LanguageModel
from sae_bench.progress import Progress
from sae_bench.sae import SparseAutoencoder
from sae_bench.sites import resolve_site, resume_at
from sae_bench.stats import bootstrap_ratio, sums_by


@dataclass(frozen=True)
class TextBatch:
    """Contexts for the language model, and which positions count.

    counted: positions that are neither special nor padding; scored: positions whose input and
    target are both counted (the last position has no target).
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    documents: Int[np.ndarray, "batch pos"]
    counted: Bool[Tensor, "batch pos"]

    @property
    def scored(self) -> Bool[Tensor, "batch pos_minus_1"]:
        """Positions t with both t and t + 1 counted."""
        return self.counted[:, :-1] & self.counted[:, 1:]

    @property
    def owners(self) -> Int[np.ndarray, " scored"]:
        """The document of each scored position's target."""
        return self.documents[:, 1:][self.scored.cpu().numpy()]

    def losses(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[np.ndarray, " scored"]:
        """Cross-entropy in nats of each scored position, in float32."""
        kept = logits[:, :-1][self.scored].float()
        target = self.ids[:, 1:][self.scored]
        chosen = kept.gather(1, target.unsqueeze(1)).squeeze(1)
        return (kept.logsumexp(1) - chosen).cpu().numpy()


def spread(cache: ActivationCache, tokens: int) -> list[Context]:
    """Contexts of a cache, evenly spaced over all of it, that hold about `tokens` tokens (all of
    them if it has fewer): neighbours share documents, and documents are the independent units."""
    contexts = list(cache.contexts())
    share = min(1.0, tokens / sum(len(context.ids) for context in contexts))
    return [
        context
        for index, context in enumerate(contexts)
        if int((index + 1) * share) > int(index * share)
    ] or contexts[:1]


def text_batches(
    cache: ActivationCache, lm: LanguageModel, tokens: int, batch_tokens: int
) -> Iterator[TextBatch]:
    """Contexts spread over a cache, about `tokens` tokens in all, padded on the right."""
    for batch in padded_batches(spread(cache, tokens), batch_tokens, lm.pad_id):
        counted = ordinary(batch, lm.special_ids)
        ids, mask, kept = (
            torch.from_numpy(a).to(lm.device) for a in (batch.ids, batch.mask, counted)
        )
        yield TextBatch(ids, mask, batch.documents, kept)


@dataclass(frozen=True)
class Spliced:
    """Cross-entropy in nats at the scored positions.

    clean: of the untouched model; zeroed: with activations set to zero at the same positions;
    spliced: with reconstructions, one array an SAE; documents: which each position belongs to.
    """

    clean: Float[np.ndarray, " scored"]
    zeroed: Float[np.ndarray, " scored"]
    spliced: list[Float[np.ndarray, " scored"]]
    documents: Int[np.ndarray, " scored"]


def splice(
    saes: Sequence[SparseAutoencoder],
    cache: ActivationCache,
    lm: LanguageModel,
    tokens: int,
    batch_tokens: int = 1024,
) -> list[dict[str, Any]]:
    """Language-model metrics of SAEs; arguments as in `losses`.

    lm_tokens: scored positions. lm_loss: cross-entropy of the untouched model, in nats.
    delta_lm_loss: cross-entropy with reconstructions minus lm_loss, with a 95% interval from a
    bootstrap over documents. loss_recovered: 1 - delta_lm_loss / (cross-entropy with activations
    set to zero at the same positions - lm_loss).
    """
    found = losses(saes, cache, lm, tokens, batch_tokens)
    return [_result(found.clean, found.zeroed, loss, found.documents) for loss in found.spliced]


@torch.no_grad()
def losses(
    saes: Sequence[SparseAutoencoder],
    cache: ActivationCache,
    lm: LanguageModel,
    tokens: int,
    batch_tokens: int = 1024,
) -> Spliced:
    """Losses of the language model with SAEs that take raw activations, in the mode they are in.

    The model runs up to the site once a batch; only the rest runs once for each SAE. Special
    positions keep their original activations and are not scored.

    Args:
        saes: measured one after another on each batch.
        cache: gives the contexts (those its rows were extracted from) and the site.
        lm: the model the cache was made with.
        tokens: size of the evaluation, specials included; contexts are spread over the cache.
        batch_tokens: padded tokens a batch; logits of a batch take batch_tokens * vocabulary * 4
            bytes.
    """
    assert cache.site is not None
    site = resolve_site(lm, cache.site)
    clean: list[np.ndarray] = []
    zeroed: list[np.ndarray] = []
    spliced: list[list[np.ndarray]] = [[] for _ in saes]
    documents: list[np.ndarray] = []
    batches = list(text_batches(cache, lm, tokens, batch_tokens))
    passes = len(batches) * len(saes)
    with Progress(f"splicing {len(saes)} arms", passes, "passes") as progress:
        for batch in batches:
            passed = resume_at(lm, batch.ids, batch.mask, site)
            rows = passed.activations[batch.counted]

            def losses_with(
                rows: Tensor, passed: Any = passed, batch: TextBatch = batch
            ) -> np.ndarray:
                replaced = passed.activations.clone()
                replaced[batch.counted] = rows.to(replaced.dtype)
                return batch.losses(passed.logits_with(replaced))

            documents.append(batch.owners)
            clean.append(batch.losses(passed.logits))
            zeroed.append(losses_with(torch.zeros_like(rows)))
            for sae, found in zip(saes, spliced, strict=True):
                found.append(losses_with(_reconstruct(sae, rows)))
                progress.update()
    base, zero, owner = (np.concatenate(parts) for parts in (clean, zeroed, documents))
    return Spliced(base, zero, [np.concatenate(found) for found in spliced], owner)


def _reconstruct(sae: SparseAutoencoder, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """x_hat, wherever and in whatever precision the SAE lives."""
    return sae(rows.to(sae.W_dec)).to(rows.device)


def _result(
    base: np.ndarray, zero: np.ndarray, loss: np.ndarray, documents: np.ndarray
) -> dict[str, Any]:
    delta = loss.astype(np.float64) - base
    damage = float((zero.astype(np.float64) - base).mean())
    low, high = bootstrap_ratio(*sums_by(documents, delta, np.ones_like(delta)))
    return {
        "lm_tokens": len(base),
        "lm_loss": float(base.astype(np.float64).mean()),
        "delta_lm_loss": float(delta.mean()),
        "delta_lm_loss_low": low,
        "delta_lm_loss_high": high,
        "loss_recovered": 1 - float(delta.mean()) / damage if damage else float("nan"),
    }
