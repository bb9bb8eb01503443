"""Evaluation: one row of metrics for each SAE and evaluation set."""

from collections.abc import Mapping, Sequence

import pandas as pd

from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.reconstruction import measure
from sae_bench.sae import SparseAutoencoder
from sae_bench.splicing import splice

LM_TOKENS = 4096
"""Default size of the language-model evaluation, in tokens."""


def evaluate(
    saes: SparseAutoencoder | Sequence[SparseAutoencoder],
    sets: ActivationCache | Mapping[str, ActivationCache],
    *,
    lm_tokens: int = LM_TOKENS,
    language_model: LanguageModel | None = None,
) -> pd.DataFrame:
    """Measures SAEs that take raw activations (saved or loaded ones do).

    Args:
        saes: one or many; the activations and the model's prefix are computed once for all.
        sets: an evaluation cache, or several by name.
        lm_tokens: tokens of text for the language-model metrics; 0 leaves them out. Caches made
            from a tensor have no language model and leave them out, too.
        language_model: the model, if it is at hand; else the cache's own.

    Returns:
        One row for each SAE and set, in that order: `sae` (index into saes), `eval_set`, the
        metrics of `measure` and `splice`, and `frequency`, an array of d_sae firing rates.

    Raises:
        InputError: an SAE of another width than the activations.
    """
    saes = [saes] if isinstance(saes, SparseAutoencoder) else list(saes)
    named = sets if isinstance(sets, Mapping) else {"held-out": sets}
    for name, cache in named.items():
        for sae in saes:
            if sae.d_in != cache.d_in:
                raise InputError(
                    f"evaluate: the SAE reads activations of width {sae.d_in}, "
                    f"evaluation set {name!r} holds width {cache.d_in}"
                )
    rows = []
    for name, cache in named.items():
        results = measure(saes, cache)
        lm = (language_model or cache.language_model()) if lm_tokens and cache.site else None
        losses = splice(saes, cache, lm, lm_tokens) if lm else [{}] * len(saes)
        for index, (metrics, loss) in enumerate(zip(results, losses, strict=True)):
            rows.append({"sae": index, "eval_set": name, **metrics, **loss})
    return pd.DataFrame(rows).sort_values(["sae", "eval_set"], kind="stable", ignore_index=True)
