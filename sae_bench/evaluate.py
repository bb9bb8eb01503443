"""Evaluation: one row of metrics for each SAE and evaluation set."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd

from sae_bench.annotations import shown, typed
from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError, a
from sae_bench.models import LanguageModel
from sae_bench.reconstruction import measure
from sae_bench.sae import SparseAutoencoder
from sae_bench.splicing import splice

LM_TOKENS = 4096
"""Default size of the language-model evaluation, in tokens."""


@typed("saes", "sets")
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
        InputError: no SAE or no set, or something else in their place, an SAE of another width
            than the activations, a language model that cannot be found again. Nothing has been
            measured then.
    """
    if isinstance(saes, SparseAutoencoder):
        saes = [saes]
    if not isinstance(saes, Sequence) or isinstance(saes, str):
        raise InputError(f"evaluate: takes SAEs, got {a(type(saes).__name__)}; see load_sae")
    named = named_sets(sets)
    if not saes:
        raise InputError("evaluate: no SAEs were given")
    for sae in saes:
        if not isinstance(sae, SparseAutoencoder):
            raise InputError(f"evaluate: takes SAEs, got {a(type(sae).__name__)}; see load_sae")
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


def named_sets(
    given: ActivationCache | Mapping[str, ActivationCache],
) -> dict[str, ActivationCache]:
    """Evaluation sets by name; a single cache is called `held-out`.

    Raises:
        InputError: none, or something else than caches.
    """
    if isinstance(given, ActivationCache):
        given = {"held-out": given}
    if not isinstance(given, Mapping):
        raise InputError(
            f"evaluate: must be a cache, or caches by name, got {a(type(given).__name__)}; "
            "ActivationCache.from_tensor(x, held_out=0) makes one from activations"
        )
    if not given:
        raise InputError("evaluate: no evaluation set is named")
    for name, cache in given.items():
        if not (isinstance(name, str) and name):
            raise InputError(f"evaluate: sets are named by text, got {shown(name)}")
        if not isinstance(cache, ActivationCache):
            raise InputError(
                f"evaluate: set {name!r} must be an ActivationCache, got {a(type(cache).__name__)}"
            )
    return dict(given)


def language_models(
    sets: Mapping[str, ActivationCache], lm_tokens: int, given: LanguageModel | None = None
) -> dict[str, LanguageModel | None]:
    """The language model of each evaluation set: `given`, else the cache's own, loaded if need be;
    None where there is nothing to measure with it.

    Raises:
        InputError: lm_tokens is negative, a model cannot be found again, or `given` is another one.
    """
    if lm_tokens < 0:
        raise InputError(f"lm_tokens must not be negative, got {lm_tokens}")
    for name, cache in sets.items():
        own = cache.record().get("model")
        if lm_tokens and given and own and own["fingerprint"] != given.fingerprint():
            raise InputError(
                f"language_model {given.name} is not the model that evaluation set {name!r} comes "
                f"from, which is {own['name']}: weights, dtype or tokenizer differ"
            )
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
