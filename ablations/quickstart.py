"""How do four architectures compare on a small language model, within minutes on two cores?

SmolLM2-135M, residual stream after layer 9, about 100k cached tokens, 4 architectures x 4 sparsity
settings. Short runs need tuned learning rates and, for JumpReLU, a threshold that starts near where
it settles (sqrt(lambda)) and a learning rate of its own: deviations from the paper's recipe that
larger budgets do not need.
"""

import pandas as pd
from matplotlib.figure import Figure

from architectures import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from architectures.topk import AuxK
from sae_bench import plots
from sae_bench.ablation import Data, Preset, Results
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm, grid
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1
from sae_bench.recipe import Recipe

PRESETS = {
    "smollm2": Preset(
        data=Data(),
        d_sae=1536,
        recipe=Recipe(
            tokens=200_000,
            batch_size=512,
            lr=2e-3,
            betas=(0.9, 0.999),
            lr_warmup=20,
            lr_decay=80,
            penalty_warmup=100,
        ),
    ),
}


def arms(preset: Preset) -> list[Arm]:
    """4 architectures x 4 settings, L0 from about 10 to 150."""
    shared = {"d_sae": preset.d_sae, "recipe": preset.recipe}
    jump = {
        "d_sae": preset.d_sae,
        "recipe": preset.recipe.replace(lr=4e-3, threshold_lr=1e-2),
        "activation": JumpReLU(LogThreshold(0.02)),
        "kernel": Rectangle(0.03),
    }
    return [
        *grid(ReLUSAE, penalty=[L1(c) for c in (2e-2, 4e-2, 8e-2, 0.16)], **shared),
        *grid(
            TopKSAE,
            activation=[TopK(k) for k in (12, 32, 64, 128)],
            aux=AuxK(dead_after=50_000),
            **shared,
        ),
        *grid(GatedSAE, penalty=[L1(c) for c in (2e-2, 4e-2, 8e-2, 0.16)], **shared),
        *grid(JumpReLUSAE, penalty=[L0(c) for c in (1e-4, 3e-4, 1e-3, 3e-3)], **jump),
    ]


def figures(results: Results) -> dict[str, Figure]:
    """FVU and delta LM loss against L0, and firing-frequency histograms."""
    return plots.comparison(results.table, results.frequencies)


def answer(table: pd.DataFrame) -> str:
    """None: this is a look, not a study."""
    return ""
