"""How do SAE architectures compare on one site of one language model?

Every architecture over a range of sparsity settings, at equal tokens, width and data order.
Presets: `smollm2` for a workstation without a GPU, and `gemma-2-2b`, in the recipe of arXiv
2407.14435, for one GPU with 80 GB: 50M cached tokens (230 GB on disk in bfloat16, where they stay
if no memory holds them) and 200M training tokens for each of 24 arms, trained in lockstep.
"""

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from architectures import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from architectures.topk import AuxK
from sae_bench import plots
from sae_bench.ablation import Data, Preset
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm, grid
from sae_bench.contexts import Packed
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.penalties import L0, L1
from sae_bench.recipe import Recipe
from sae_bench.results import Results


@dataclass(frozen=True)
class Comparison(Preset):
    """A preset with the settings of each architecture.

    Args:
        relu, gated: coefficients of L1.
        topk: values of k.
        jumprelu: coefficients of L0.
        threshold: start of JumpReLU's thresholds.
        kernel: window around them.
        aux: TopK's auxiliary loss.
        seeds: seeds of every cell.
    """

    relu: tuple[float, ...] = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16)
    gated: tuple[float, ...] = (1e-2, 2e-2, 4e-2, 8e-2, 0.16, 0.32)
    topk: tuple[int, ...] = (8, 16, 32, 64, 128, 192)
    jumprelu: tuple[float, ...] = (5e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3)
    threshold: LogThreshold = LogThreshold(1e-3)
    kernel: Kernel = Rectangle(1e-3)
    aux: AuxK = AuxK()
    seeds: tuple[int, ...] = (0,)


PRESETS = {
    "smollm2": Comparison(
        data=Data(tokens=983_040, held_out_tokens=98_304, lm_tokens=16_384),
        d_sae=4608,
        recipe=Recipe(
            tokens=4_000_000,
            batch_size=1024,
            lr=2e-3,
            threshold_lr=3e-2,
            betas=(0.9, 0.999),
            lr_warmup=100,
            lr_decay=1_000,
            penalty_warmup=500,
            centre=True,
        ),
        threshold=LogThreshold(0.04),
        kernel=Rectangle(0.02),
        aux=AuxK(dead_after=100_000),
        seeds=(0, 1, 2),
    ),
    "gemma-2-2b": Comparison(
        data=Data(
            model="google/gemma-2-2b",
            site="layers.12.resid_post",
            text="monology/pile-uncopyrighted",
            tokens=50_000_000,
            held_out_tokens=1_000_000,
            context=Packed(1024),
            dtype="bfloat16",
            model_dtype="bfloat16",
            lm_tokens=262_144,
        ),
        d_sae=16_384,
        recipe=Recipe(tokens=200_000_000),
    ),
}


def arms(preset: Comparison) -> list[Arm]:
    """4 architectures, each over its sparsity settings and seeds."""
    common: dict[str, Any] = {"d_sae": preset.d_sae, "recipe": preset.recipe, "seed": preset.seeds}
    jump = {**common, "activation": JumpReLU(preset.threshold), "kernel": preset.kernel}
    return [
        *grid(ReLUSAE, penalty=[L1(c) for c in preset.relu], **common),
        *grid(TopKSAE, activation=[TopK(k) for k in preset.topk], aux=preset.aux, **common),
        *grid(GatedSAE, penalty=[L1(c) for c in preset.gated], **common),
        *grid(JumpReLUSAE, penalty=[L0(c) for c in preset.jumprelu], **jump),
    ]


def figures(results: Results) -> dict[str, Figure]:
    """FVU and delta LM loss against L0, and firing-frequency histograms."""
    return plots.comparison(results.table, results.frequencies)


def answer(results: Results) -> str:
    """Nothing yet: the frontiers speak for themselves."""
    return ""
