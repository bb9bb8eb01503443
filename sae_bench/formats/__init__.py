"""SAEs that travel: one file a library, each with load and save."""

from sae_bench.formats.dictionary_learning import DictionaryLearning
from sae_bench.formats.format import Format
from sae_bench.formats.gemma_scope import GemmaScope
from sae_bench.formats.native import Native
from sae_bench.formats.saelens import SAELens
from sae_bench.formats.sparsify import Sparsify

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (SAELens(), GemmaScope(), DictionaryLearning(), Sparsify(), Native())
}
"""Every format by the name that users call it; the first that claims a path reads it."""

__all__ = ["FORMATS", "Format"]
