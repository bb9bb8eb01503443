"""Activations of an ablation that no disk holds."""

from dataclasses import dataclass

from sae_bench.ablation import Data
from sae_bench.cache import ActivationCache
from sae_bench.shapes import SHAPES
from sae_bench.source import ActivationSource
from sae_bench.stream import ActivationStream


@dataclass(frozen=True)
class Streamed(Data):
    """SAEs are trained on an `ActivationStream`; on disk lie the held-out side and, of the training
    side, the first `tokens` rows: a sample that gives the scale s and stands for the training
    activations wherever an ablation measures them.

    The sample, the held-out side and the stream share one language model, which runs over the text
    once more for every wave of arms (see `train`).

    Args:
        tokens_in_buffer: as in `ActivationStream`.
    """

    tokens_in_buffer: int = 2**18

    def source(self, cache: ActivationCache) -> ActivationSource:
        """The stream, in the units of `cache`."""
        return ActivationStream(
            cache.language_model() or self.model,
            self.site,
            self.text,
            context=self.context,
            tokens_in_buffer=self.tokens_in_buffer,
            dtype=self.dtype,
            held_out=cache.held_out,
            scale=cache.scale,
        )

    def streamed(self, tokens: int) -> float:
        """Of the forward pass up to the site."""
        shape = SHAPES.get(self.model)
        return float(tokens * shape.flop(self.site)) if shape else 0.0
