"""How do four architectures compare on a small language model, within minutes on two cores?

SmolLM2-135M, residual stream after layer 9, about 100k cached tokens of technical English (the
first 1,500 characters of each document), 4 architectures x 4 sparsity settings. Deviations from the
paper's recipe that so short a run needs: larger learning rates, Adam with momentum, a decoder bias
that starts at the first batch's mean, and for JumpReLU thresholds that start near where they settle
(sqrt(lambda)), with a wider kernel and a learning rate of their own. One learning rate serves all:
of 2e-3, 4e-3 and 8e-3, on another seed, it was the best or nearly so for each (no table was kept).
At this budget TopK does better against ReLU than at twice the tokens: `architectures` has both.
"""

from ablations.architectures import Comparison, answer, arms, contrasts, figures
from architectures.topk import AuxK
from sae_bench.ablation import Data
from sae_bench.activations import LogThreshold
from sae_bench.kernels import Rectangle
from sae_bench.recipe import Recipe
from sae_bench.text import Documentation, Excerpts

PRESETS = {
    "smollm2": Comparison(
        data=Data(text=Excerpts(Documentation(), 1_500)),
        d_sae=1152,
        recipe=Recipe(
            tokens=200_000,
            batch_size=256,
            lr=4e-3,
            threshold_lr=3e-2,
            betas=(0.9, 0.999),
            lr_warmup=40,
            lr_decay=150,
            penalty_warmup=200,
            centre=True,
        ),
        relu=(1.4e-2, 2.5e-2, 5e-2, 1e-1),
        gated=(2.8e-2, 5e-2, 8e-2, 1.6e-1),
        topk=(12, 32, 64, 128),
        jumprelu=(1e-4, 2e-4, 6e-4, 2e-3),
        threshold=LogThreshold(0.04),
        kernel=Rectangle(0.02),
        aux=AuxK(dead_after=20_000),
    ),
}

__all__ = ["PRESETS", "answer", "arms", "contrasts", "figures"]
