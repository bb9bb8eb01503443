"""Evaluation: one row of metrics for each SAE and evaluation set."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

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
        One row for each SAE and set, in the order given: `sae` (index into saes), `eval_set`, the
        metrics of `measure` and `splice`, and `frequency`, an array of d_sae firing rates.

    SAEs are measured in evaluation mode; nothing about them is different afterwards.

    Raises:
        InputError: no SAE or no set, an SAE of another width than the activations, a language
            model that cannot be found again. Nothing has been measured then.
    """
    saes = [saes] if isinstance(saes, SparseAutoencoder) else list(saes)
    named = sets if isinstance(sets, Mapping) else {"held-out": sets}
    if not saes or not named:
        raise InputError(f"evaluate: {len(saes)} SAEs and {len(named)} evaluation sets were given")
    for name, cache in named.items():
        for sae in saes:
            if sae.d_in != cache.d_in:
                raise InputError(
                    f"evaluate: the SAE reads activations of width {sae.d_in}, "
                    f"evaluation set {name!r} holds width {cache.d_in}"
                )
    models = language_models(named, lm_tokens, language_model)
    rows = []
    with _evaluating(saes):
        for name, cache in named.items():
            results = measure(saes, cache)
            lm = models[name]
            losses = splice(saes, cache, lm, lm_tokens) if lm else [{}] * len(saes)
            for index, (metrics, loss) in enumerate(zip(results, losses, strict=True)):
                rows.append({"sae": index, "eval_set": name, **metrics, **loss})
    return pd.DataFrame(rows).sort_values("sae", kind="stable", ignore_index=True)


def language_models(
    sets: Mapping[str, ActivationCache], lm_tokens: int, given: LanguageModel | None = None
) -> dict[str, LanguageModel | None]:
    """The language model of each evaluation set: `given`, else the cache's own, loaded if need be;
    None where there is nothing to measure with it.

    Raises:
        InputError: lm_tokens is negative, or a model cannot be found again.
    """
    if lm_tokens < 0:
        raise InputError(f"lm_tokens must not be negative, got {lm_tokens}")
    return {
        name: (given or cache.language_model()) if lm_tokens and cache.site else None
        for name, cache in sets.items()
    }


@contextmanager
def _evaluating(saes: Sequence[SparseAutoencoder]) -> Iterator[None]:
    """Evaluation mode inside, the former mode afterwards."""
    modes = [sae.training for sae in saes]
    for sae in saes:
        sae.eval()
    try:
        yield
    finally:
        for sae, mode in zip(saes, modes, strict=True):
            sae.train(mode)
