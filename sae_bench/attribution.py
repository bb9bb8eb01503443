"""How evenly the latents that fire share in the model's next-token prediction: r_L0.

For a token with codes f, decoder rows d_i and g the gradient of the prediction at the site,
y_i = f_i d_i . g is to first order what latent i adds to it. With p = |y| / sum |y| and its entropy
H in nats,

    r_L0 = exp(H) / ||y||_0,

1 if all latents with y_i != 0 add equally much, 1 / ||y||_0 if a single one does it all
(arXiv 2407.14435, Fig. 16).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.cache import ActivationCache
from sae_bench.models import LanguageModel
from sae_bench.progress import shown
from sae_bench.sae import SparseAutoencoder
from sae_bench.sites import Resumable, resolve_site, resume_at
from sae_bench.splicing import TextBatch, text_batches
from sae_bench.stats import bootstrap_ratio, sums_by


def relative_l0(y: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, " tokens"]:
    """r_L0 of each token; NaN where y = 0 throughout."""
    size = y.abs()
    p = size / size.sum(1, keepdim=True)
    return torch.special.entr(p).sum(1).exp() / (size > 0).sum(1)


def prediction_gradient(batch: TextBatch, passed: Resumable) -> Float[Tensor, "batch pos d_in"]:
    """The gradient at the site of the sum over scored positions of the correct token's logit minus
    the mean logit, on the clean pass. A position gets what it does to all later ones."""
    here = passed.activations.detach().requires_grad_()
    with torch.enable_grad():
        logits = passed.logits_with(here)[:, :-1][batch.scored].float()
        target = batch.ids[:, 1:][batch.scored]
        centred = logits.gather(1, target.unsqueeze(1)).sum() - logits.mean(1).sum()
        (gradient,) = torch.autograd.grad(centred, here)
    return gradient


@torch.no_grad()
def attribution(
    saes: Sequence[SparseAutoencoder],
    cache: ActivationCache,
    lm: LanguageModel,
    tokens: int,
    batch_tokens: int = 1024,
) -> list[dict[str, Any]]:
    """r_L0 of SAEs that take raw activations; the gradient is computed once a batch for all.

    Args:
        saes: with parameters W_dec.
        cache: gives the contexts (those its rows were extracted from) and the site.
        lm: the model the cache was made with.
        tokens: size of the evaluation, specials included; contexts are spread over the cache.
        batch_tokens: padded tokens a batch.

    Returns:
        For each SAE: r_l0, the mean over ordinary tokens with y != 0; its 95% interval from a
        bootstrap over documents, r_l0_low and r_l0_high; r_l0_tokens, their number.
    """
    assert cache.site is not None
    site = resolve_site(lm, cache.site)
    found: list[list[np.ndarray]] = [[] for _ in saes]
    documents: list[np.ndarray] = []
    batches = list(text_batches(cache, lm, tokens, batch_tokens))
    for batch in shown(batches, f"attributing to {len(saes)} arms", len(batches), "batches"):
        passed = resume_at(lm, batch.ids, batch.mask, site)
        x, g = passed.activations[batch.counted], prediction_gradient(batch, passed)[batch.counted]
        documents.append(batch.documents[batch.counted.cpu().numpy()])
        for sae, values in zip(saes, found, strict=True):
            y = sae.encode(x.to(sae.W_dec)) * (g.to(sae.W_dec) @ sae.W_dec.T)
            values.append(relative_l0(y.double()).cpu().numpy())
    owner = np.concatenate(documents)
    return [_result(np.concatenate(values), owner) for values in found]


def _result(values: Float[np.ndarray, " tokens"], documents: np.ndarray) -> dict[str, Any]:
    known = np.isfinite(values)
    if not known.any():
        nothing = dict.fromkeys(("r_l0", "r_l0_low", "r_l0_high"), float("nan"))
        return {**nothing, "r_l0_tokens": 0}
    kept = values[known]
    low, high = bootstrap_ratio(*sums_by(documents[known], kept, np.ones_like(kept)))
    return {
        "r_l0": float(kept.mean()),
        "r_l0_low": low,
        "r_l0_high": high,
        "r_l0_tokens": int(known.sum()),
    }
