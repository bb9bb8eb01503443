"""How do SAE architectures compare on one site of one language model?

Every architecture over a range of sparsity settings, at equal width and data order: at equal tokens
and, where each is trained with several budgets, at equal compute (`_compute.py`). Latents that
several architectures and seeds find are told by the cosines of their decoder directions
(`_matching.py`).

Stated before the results were read:
- Places: L0 = 16, 32, 64, those inside the range of all curves (at equal compute: at all budgets),
  told place by place; monotone interpolation in log L0, nothing extrapolated. Differences of FVU
  below 1% are within what interpolation between five settings errs by.
- Intervals are t-intervals over three seeds, which draw the weights. The order of the data and the
  text are the same for all, and neither they nor interpolation are in them; they are not corrected
  for number, and the order of architectures is not tested. What the text adds to delta LM loss is
  told beside it (documents drawn anew, one seed).
- At full budget ReLU, Gated, Gated RI-L1, JumpReLU and TopK repeat arms of `factorial.py` (same
  data, seeds and recipe): no replication of it. Learning rates were tried for those five, at half
  the tokens and for L0 40; BatchTopK and Matryoshka have TopK's. TopK would be 1.9% better at L0 16
  with 4e-3, ReLU + L1 1.6% at L0 22 with 1.2e-2.
- Half a budget is about one pass over the cached tokens, a full one two; schedules shrink with it,
  AuxK's 50,000 tokens do not.
- Compute: the median over seeds of the seconds of an arm's own steps, sparse ones on two cores, in
  which the dense steps before the penalty acts weigh much; and matrix products of dense steps (5 in
  units of the encoder's, Gated 7, Gated RI-L1 8).
- Matching: mutual best matches, live latents, arms of other seeds. At this length shares hang on
  L0 and on how far training led from the start; they are compared at three L0, beside the centred
  activations of random tokens.
- Matryoshka is trained for its prefixes; FVU of the whole is not its aim.

Presets: `study`, at the scale of `ablations/factorial.py` with the learning rate that its trials
chose, 7 architectures, 5 settings (three leave too much to interpolation), 3 seeds, 2 budgets, 60
to 75 minutes on two cores and 40 to measure; `smollm2` for a longer run without a GPU; and
`gemma-2-2b`, in the recipe of arXiv 2407.14435, for one GPU with 80 GB: 50M cached tokens (230 GB
on disk in bfloat16, where they stay if no memory holds them) and 200M training tokens for each of
24 arms, trained in lockstep.

Added after a review of the first report: FVU at the lower budget, where the order is another.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ablations._attribution import against_l0, attribution
from ablations._comparison import (
    FVU,
    LOSS,
    full_budget,
    matching,
    squares,
    tabulated,
    verdict,
)
from ablations._compute import against_compute, at_compute
from ablations._documents import document_noise
from ablations._lines import BANDS, LINES, prepared
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
from sae_bench import bands, plots
from sae_bench.ablation import Data, Finished, Preset
from sae_bench.activations import BatchTopK, JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm, grid
from sae_bench.contexts import Packed
from sae_bench.cost import products
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


def documents(finished: Finished) -> pd.DataFrame:
    """How wide differences from ReLU are over documents, full budget, first seed."""
    table = full_budget(finished.table)
    outcomes = (FVU, LOSS)
    return document_noise(replace(finished, table=table), squares(prepared(table)), outcomes)


def dense_products(finished: Finished) -> pd.DataFrame:
    """Columns arm, products: matrix products of a dense step (`cost.products`)."""
    assert isinstance(finished.preset, Comparison)
    there = set(finished.table["arm"])
    known = {arm.key: arm for arm in arms(finished.preset) if arm.key in there}
    by_name = {arm.name: products(arm) for arm in known.values()}
    rows = [(key, by_name[arm.name]) for key, arm in known.items()]
    return pd.DataFrame(rows, columns=["arm", "products"])


FURTHER = {
    "matches": matches,
    "attribution": attribution,
    "documents": documents,
    "products": dense_products,
}


CAPTIONS = {
    "fvu_vs_l0": (
        "One marker an arm; bars are 95% intervals over held-out documents, which all arms "
        "share. Full budget."
    ),
    "delta_lm_loss_vs_l0": (
        "One marker an arm; bars are 95% intervals over held-out documents, which all arms "
        "share. Full budget."
    ),
    "frequency_histograms": (
        "Firing frequencies at L0 16 and 64, interpolated between settings; the first bin "
        "holds all below 1e-4."
    ),
    "fvu_vs_compute": (
        "FVU, mean over L0 16, 32, 64, against seconds of steps on two cores and matrix "
        "products of dense steps; bars are 95% t-intervals over seeds."
    ),
    "matches": (
        "Share of the latents of the row's architecture whose best match in the column's, "
        "at another seed, is mutual and has a cosine above 0.7; arms nearest to L0 32."
    ),
    "r_l0_vs_l0": (
        "r_L0: how evenly the effect on the next token is spread over a token's active "
        "latents (arXiv 2407.14435, Fig. 16). " + BANDS
    ),
}


def figures(results: Results) -> dict[str, Figure]:
    """FVU and delta LM loss against L0 at the full budget, firing frequencies at matched L0; with
    several budgets FVU against compute, with several seeds the latents that match; with a language
    model r_L0 against L0."""
    table, further = results.table, results.further
    full = full_budget(table)
    drawn = plots.comparison(full, results.frequencies)
    if table["seed"].nunique() > 1:  # the panels of one seed hold an outline a setting
        drawn["frequency_histograms"] = _histograms(full, results.frequencies)
    if table["train_tokens"].nunique() > 1:
        spent = at_compute(prepared(table), further.get("products", pd.DataFrame()))
        if spent["log_fvu"].notna().any():
            drawn["fvu_vs_compute"] = against_compute(spent)
    if "matches" in further and table["seed"].nunique() > 1:
        drawn["matches"] = matching(further["matches"])
    if len(found := further.get("attribution", pd.DataFrame())):
        drawn["r_l0_vs_l0"] = against_l0(found, full)
    return drawn


def _histograms(full: pd.DataFrame, frequencies: pd.DataFrame) -> Figure:
    drawn = plots.figure(6.8, 3.0, 1, 2, shared=True)
    lines = plots.looks(list(full["architecture"].unique()))
    for l0, axes in zip((16, 64), drawn.axes, strict=True):
        bands.matched_histogram(full, frequencies, axes, by="architecture", lines=lines, l0=l0)
    drawn.axes[1].set_ylabel("")
    return plots.legend_below(drawn, drawn.axes[0], columns=4)


def contrasts(results: Results) -> pd.DataFrame:
    """One architecture (of) minus another (to) at equal tokens and at equal compute, one at a
    larger budget minus itself at a smaller one, and the share of the one's latents that the other
    has; see `_comparison.tabulated`."""
    return tabulated(results)


def answer(results: Results) -> str:
    """Differences from ReLU at matched L0 and at equal compute, and who finds whose latents."""
    return verdict(results)
