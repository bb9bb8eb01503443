"""Dead latents of SAEs of any width, counted over as many tokens a latent."""

from itertools import islice

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.ablation import Data, Finished
from sae_bench.cache import ActivationCache
from sae_bench.plain import PlainJumpReLU
from sae_bench.progress import shown

EACH = 29
"""Tokens a latent: 33k for 1,152 latents, as many as the held-out side has, 475k for 16,384. The
mean latent fires EACH * L0 times in them, whatever the width; in a fixed number of tokens it fires
the less often the wider the SAE, and a rare latent passes for a dead one."""
CHUNK = 2048


def unfired(finished: Finished) -> pd.DataFrame:
    """One row an arm: arm; unfired, the share of its latents that fire on none of the first
    EACH * d_sae tokens of the training text (to the end of a chunk), cached for this where
    training needed fewer."""
    data, tokens = finished.preset.data, EACH * finished.preset.d_sae
    assert isinstance(data, Data)
    cache, arms = data.replace(tokens=tokens).cache(), list(finished.table["arm"])
    rows = [
        (arm, never(finished.sae(arm).plain().as_jumprelu(), cache, tokens))
        for arm in shown(arms, "counting latents that never fire", len(arms), "arms")
    ]
    return pd.DataFrame(rows, columns=["arm", "unfired"])


@torch.no_grad()
def never(sae: PlainJumpReLU, cache: ActivationCache, tokens: int) -> float:
    """Share of latents whose pre-activations exceed their thresholds on none of the first `tokens`
    rows (to the end of a chunk). A latent is looked at until it fires, so the cost falls with
    those that are left.

    Args:
        sae: takes raw activations, wherever and in whatever precision it lives.
        cache: raw activations in stored order, anywhere.
        tokens: at least 1.
    """
    b = sae.b_enc - sae.b_dec @ sae.W_enc - sae.threshold
    left: Float[Tensor, "left d_in"] = sae.W_enc.T
    for x in islice(cache.chunks(CHUNK), -(-tokens // CHUNK)):
        silent = ~(x.to(left) @ left.T > -b).any(0)
        left, b = left[silent], b[silent]
    return len(b) / sae.d_sae
