"""How evenly an SAE's active latents share the effect on the next token: r_L0 (arXiv 2407.14435,
Fig. 16)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.cache import ActivationCache
from sae_bench.models import LanguageModel
from sae_bench.progress import shown
from sae_bench.sae import SparseAutoencoder
from sae_bench.sites import Site, logits_from, resolve_site
from sae_bench.splicing import TextBatch, text_batches
from sae_bench.stats import bootstrap_ratio, sums_by


def gradients(
    lm: LanguageModel, site: Site, batch: TextBatch
) -> tuple[Float[Tensor, "scored d_in"], Float[Tensor, "scored d_in"]]:
    """Activations x and gradients g at the scored positions of a batch, on the clean pass:

        g_s = d/dx_s  sum_t (logit_t[v] - mean_u logit_t[u]),   v the token at t + 1,

    t over the scored positions of the context (those before s do not depend on x_s). One forward
    and one backward pass; beside the logits, one tensor of their size. Both in the model's units,
    logits per unit of activation for g, and in float32 whatever its dtype.
    """
    x, logits = logits_from(lm, batch.ids, batch.mask, site)
    weight = torch.zeros_like(logits)  # of each logit in the sum
    weight[:, :-1][batch.scored] = -1 / logits.shape[2]
    correct = batch.scored.unsqueeze(2).to(weight.dtype)
    weight[:, :-1].scatter_add_(2, batch.ids[:, 1:].unsqueeze(2), correct)
    (g,) = torch.autograd.grad(logits, x, weight)
    return x.detach()[:, :-1][batch.scored].float(), g[:, :-1][batch.scored].float()


def r_l0(
    f: Float[Tensor, "tokens d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    g: Float[Tensor, "tokens d_in"],
) -> Float[Tensor, " tokens"]:
    """Effective number of latents with an attribution, as a share of them:

        y_i = f_i (d_i . g),   p = |y| / sum_i |y_i|,   r_L0 = exp(-sum_i p_i log p_i) / ||y||_0.

    1 where all have the same, towards 1/n where one of n has nearly all; NaN where y = 0. f, W_dec
    and g belong to the same units of activations, any: r_L0 knows no scale.

    Args:
        f: codes.
        W_dec: decoder, rows d_i of any norm.
        g: gradient at the site.
    """
    y = (f * (g @ W_dec.T)).abs()
    p = y / y.sum(1, keepdim=True)
    return torch.special.entr(p).sum(1).exp() / (y > 0).sum(1)


@torch.no_grad()
def relative_l0(
    saes: Sequence[SparseAutoencoder],
    cache: ActivationCache,
    lm: LanguageModel,
    tokens: int,
    batch_tokens: int = 1024,
) -> list[dict[str, Any]]:
    """r_L0 of SAEs that take raw activations, in the mode they are in; arguments as in
    `splicing.losses`. Gradients are computed once a batch for all SAEs.

    r_l0: mean over scored positions with y != 0, with a 95% interval from a bootstrap over
    documents (r_l0_low, r_l0_high); r_l0_tokens: the number of these positions. NaN if there is
    none.
    """
    assert cache.site is not None
    site = resolve_site(lm, cache.site)
    found: list[list[np.ndarray]] = [[] for _ in saes]
    documents: list[np.ndarray] = []
    batches = list(text_batches(cache, lm, tokens, batch_tokens))
    for batch in shown(batches, f"attribution of {len(saes)} arms", len(batches), "batches"):
        x, g = gradients(lm, site, batch)
        documents.append(batch.owners)
        for sae, values in zip(saes, found, strict=True):
            f = sae.encode(x.to(sae.W_dec))
            values.append(r_l0(f, sae.W_dec, g.to(sae.W_dec)).float().cpu().numpy())
    owner = np.concatenate(documents)
    return [_result(np.concatenate(values), owner) for values in found]


def _result(
    values: Float[np.ndarray, " scored"], documents: Int[np.ndarray, " scored"]
) -> dict[str, Any]:
    known = ~np.isnan(values)
    values = values[known].astype(np.float64)
    low, high = bootstrap_ratio(*sums_by(documents[known], values, np.ones_like(values)))
    mean = float(values.mean()) if len(values) else float("nan")
    return {"r_l0": mean, "r_l0_low": low, "r_l0_high": high, "r_l0_tokens": len(values)}
