"""The setting of the JumpReLU paper (arXiv 2407.14435): preset `gemma-2-9b` of `paper.py`.

From the paper: Gemma 2 9B, contexts of 1,024 without their BOS, 131,072 latents, 8B tokens in
batches of 4,096; Adam at 7e-5 with betas (0, 0.999), a cosine warm-up of 1,000 steps from 10% and
no decay, a linear one of the penalty over 10,000; thresholds as logarithms, from 0.001, in windows
of 0.001; AuxK over 512 latents that were silent for 10M tokens; 10,000 x 1,024 held-out tokens, on
2,048 x 1,024 of which the loss of the language model is measured; k of TopK and the targets of L0,
from the curves of figure 2.

Chosen here, as the paper does not say it:
- coefficients. lambda of L0 lies around the published pair 6e-4, L0 about 50 (layer 20, residual);
  with L0 nearly as 1 / lambda, six values reach the L0 of figure 2, about 200 to 10. Those of
  Gated and Gated RI-L1 are what gives the same L0 by their ratios to sqrt(lambda) in `_lines.py`,
  from another model. One range for all sites: look at the first arms before the others are run.
- text: the public Pile; the paper's is that of Gemma's training.
- precision: model, activations and matrix products in bfloat16, parameters, thresholds and Adam's
  moments in float32. Pre-activations near a threshold of 0.03 have steps of 1e-4 then, a tenth of a
  window.
- a buffer of 2^19 activations to shuffle in; s from the first 65,536 tokens.

Cost (`sae-bench run paper --preset gemma-2-9b --dry-run`, at 4e14 FLOP/s): an arm takes 26 hours of
a GPU, Gated 37, Gated RI-L1 42, attention a seventh more; the 24 arms of a site 783 hours, all 246
8,160. 8B tokens of a site would be 57 TB; the held-out side, which stays, is 73 GB. The language
model runs along, 22, 46 or 70 hours for layers 9, 20, 31, and again for every wave of arms that
memory holds: beside it 2 arms with 80 GB, 7 with 141 GB, so 12 or 4 times for a site. Several GPUs
share a site by its arms, each with its own `--out`, whose arms/ go into one folder afterwards:

    sae-bench run paper --preset gemma-2-9b --parts layers.20.resid_post --dry-run     # the keys
    sae-bench run paper --preset gemma-2-9b --parts layers.20.resid_post --arms KEY KEY

The same without `--arms` trains what is missing, and nothing where all is there. None of it has
been run.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ablations._lines import Line, Tuned
from architectures.topk import AuxK
from sae_bench.activations import TopK
from sae_bench.contexts import Packed
from sae_bench.recipe import Recipe
from sae_bench.streamed import Streamed

ORIGIN = Streamed(
    model="google/gemma-2-9b",
    site="layers.20.resid_post",
    text="monology/pile-uncopyrighted",
    tokens=65_536,
    held_out_tokens=10_000 * 1_024,
    context=Packed(1_024),
    dtype="bfloat16",
    model_dtype="bfloat16",
    lm_tokens=2_048 * 1_024,
    tokens_in_buffer=2**19,
)
RECIPE = Recipe(tokens=8_000_000_000, autocast=True)
TUNED = Tuned(lr=7e-5, threshold_lr=7e-5, start=1e-3, bandwidth=1e-3)
RANKS = (200, 100, 70, 30, 20, 10)
LAMBDAS = (1.5e-4, 3e-4, 6e-4, 1e-3, 1.7e-3, 3e-3)


def _ranked(k: float, tuned: Tuned) -> Mapping[str, Any]:
    return {"activation": TopK(int(k)), "aux": AuxK(k=512)}


LINES = ("Gated", "Gated RI-L1", "JumpReLU + L0 (theta)", "TopK")
"""The paper's four, at every site."""
KERNELS = ("Triangle", "Epanechnikov", "Gaussian")
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "Gated": {"settings": (0.043, 0.068, 0.10, 0.13, 0.18, 0.24)},
    "Gated RI-L1": {"settings": (0.027, 0.044, 0.067, 0.094, 0.135, 0.18)},
    "TopK": {"settings": RANKS, "slots": _ranked},
    "TopK without AuxK": {"settings": RANKS},
    "JumpReLU + target L0": {"settings": RANKS},
    LINES[2]: {"settings": LAMBDAS},
    **{f"JumpReLU + L0, {kernel}": {"settings": LAMBDAS} for kernel in KERNELS},
}
"""What differs in each line."""
VARIANTS = tuple(name for name in CHANGES if name not in LINES)
"""The others, at the middle residual site."""


def as_published(name: str, line: Line) -> Line:
    """A line of `paper.py` with the settings that stand here."""
    return replace(line, **CHANGES[name])
