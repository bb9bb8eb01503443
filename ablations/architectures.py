"""How do SAE architectures compare on one site of one language model?

Every architecture over a range of sparsity settings, at equal width and data order: at equal tokens
and, since each is trained with several budgets, at equal compute (seconds of its own steps, beside
the others in lockstep on the same machine). Latents that several architectures and seeds find are
told by the cosines of their decoder directions (`_matching.py`).

Presets: `study`, at the scale of `ablations/factorial.py` with the learning rate that its trials
chose, 7 architectures, 5 settings (three leave too much to interpolation), 3 seeds, 2 budgets,
about 95 minutes on two cores; `smollm2` for a longer run without a GPU; and `gemma-2-2b`, in the
recipe of arXiv 2407.14435, for one GPU with 80 GB: 50M cached tokens (230 GB on disk in bfloat16,
where they stay if no memory holds them) and 200M training tokens for each of 24 arms, trained in
lockstep.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ablations._attribution import against_l0, attribution
from ablations._comparison import against_compute, at_compute, matching, verdict
from ablations._lines import LINES, prepared
from ablations._matching import matches
from ablations.factorial import STUDY
from architectures import (
    BatchTopKSAE,
    GatedRIL1SAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
)
from architectures.topk import AuxK
from sae_bench import plots
from sae_bench.ablation import Data, Preset
from sae_bench.activations import BatchTopK, JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm, grid
from sae_bench.contexts import Packed
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.penalties import L0, L1, RIL1
from sae_bench.recipe import Recipe
from sae_bench.results import Results
from sae_bench.sae import SparseAutoencoder


@dataclass(frozen=True)
class Comparison(Preset):
    """A preset with the settings of each architecture.

    Args:
        relu, gated: coefficients of L1.
        ril1: coefficients of Gated RI-L1.
        topk: values of k.
        batchtopk: values of k of BatchTopK and Matryoshka.
        jumprelu: coefficients of L0.
        threshold: start of JumpReLU's thresholds.
        kernel: window around them.
        aux: TopK's auxiliary loss.
        seeds: seeds of every cell.
        budgets: shares of the recipe's tokens to train with, each an arm of its own.
    """

    relu: tuple[float, ...] = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16)
    gated: tuple[float, ...] = (1e-2, 2e-2, 4e-2, 8e-2, 0.16, 0.32)
    topk: tuple[int, ...] = (8, 16, 32, 64, 128, 192)
    jumprelu: tuple[float, ...] = (5e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3)
    threshold: LogThreshold = LogThreshold(1e-3)
    kernel: Kernel = Rectangle(1e-3)
    aux: AuxK = AuxK()
    ril1: tuple[float, ...] = ()
    batchtopk: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    budgets: tuple[float, ...] = (1.0,)


PRESETS = {
    "study": Comparison(
        data=STUDY.data,
        d_sae=STUDY.d_sae,
        recipe=STUDY.recipe.replace(lr=8e-3, threshold_lr=0.1),
        relu=LINES["ReLU + L1"].settings[1:],
        gated=LINES["Gated"].settings[1:],
        ril1=LINES["Gated RI-L1"].settings[1:],
        topk=(128, 64, 32, 16, 8),
        batchtopk=(128, 64, 32, 16, 8),
        jumprelu=LINES["JumpReLU + L0 (theta)"].settings[1:],
        threshold=LogThreshold(0.04),
        kernel=Rectangle(0.02),
        aux=AuxK(dead_after=50_000),
        seeds=(0, 1, 2),
        budgets=(0.5, 1.0),
    ),
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
    """The architectures, each over its sparsity settings, seeds and budgets."""
    return [arm for share in preset.budgets for arm in _at_budget(preset, share)]


def _at_budget(preset: Comparison, share: float) -> list[Arm]:
    recipe = preset.recipe if share == 1 else preset.recipe.stretched(share)
    common: dict[str, Any] = {"d_sae": preset.d_sae, "recipe": recipe, "seed": preset.seeds}
    ranked = {**common, "aux": preset.aux}
    batched = [BatchTopK(k) for k in preset.batchtopk]
    jump = {**common, "activation": JumpReLU(preset.threshold), "kernel": preset.kernel}
    lines: tuple[tuple[type[SparseAutoencoder], str, list[Any], dict[str, Any]], ...] = (
        (ReLUSAE, "penalty", [L1(c) for c in preset.relu], common),
        (TopKSAE, "activation", [TopK(k) for k in preset.topk], ranked),
        (BatchTopKSAE, "activation", batched, ranked),
        (MatryoshkaSAE, "activation", batched, ranked),
        (GatedSAE, "penalty", [L1(c) for c in preset.gated], common),
        (GatedRIL1SAE, "penalty", [RIL1(c) for c in preset.ril1], common),
        (JumpReLUSAE, "penalty", [L0(c) for c in preset.jumprelu], jump),
    )
    return [
        arm
        for architecture, slot, settings, fixed in lines
        if settings
        for arm in grid(architecture, **{slot: settings}, **fixed)
    ]


FURTHER = {"matches": matches, "attribution": attribution}


def figures(results: Results) -> dict[str, Figure]:
    """FVU and delta LM loss against L0 at the full budget, firing-frequency histograms; with
    several budgets FVU against compute, with several seeds the latents that match; with a language
    model r_L0 against L0."""
    table = results.table
    full = table[table["train_tokens"] == table["train_tokens"].max()]
    drawn = plots.comparison(full, results.frequencies)
    spent = at_compute(prepared(table))
    if spent["train_tokens"].nunique() > 1 and spent["log_fvu"].notna().any():
        drawn["fvu_vs_compute"] = against_compute(spent)
    if "matches" in results.further and table["seed"].nunique() > 1:
        drawn["matches"] = matching(results.further["matches"])
    if len(found := results.further.get("attribution", pd.DataFrame())):
        drawn["r_l0_vs_l0"] = against_l0(found, full)
    return drawn


def answer(results: Results) -> str:
    """Differences from ReLU at matched L0 and at equal compute, and who finds whose latents."""
    return verdict(results.table, results.further.get("matches", pd.DataFrame()))
