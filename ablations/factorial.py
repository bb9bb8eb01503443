"""JumpReLU -> ReLU, L0 -> L1: is the gain due to the activation, the penalty, both, or neither?

Six cells make two 2x2s: gradients to theta only where a theta exists, and straight-through to the
input throughout. ReLU has no theta, so its L0 penalty must reach the pre-activations in both: in
the first square the step from ReLU + L0 to JumpReLU + L0 changes activation and path at once, and
the difference of the squares is the effect of the path, not a third cause beside them.

    ReLU + L1, ReLU + L0 (input), JumpReLU + L0 (theta), JumpReLU + L0 (input),
    JumpReLU + L1 (theta), JumpReLU + L1 (input).

For an isolated latent dE/dtheta >= 0 under L1: thresholds would fall to 0, and JumpReLU + L1
collapse into ReLU + L1. That is a consequence of the loss, not an interaction; the columns
`theta_over_eps` (at the start 2, or 1.5 where tuned so) and `theta_at_0` say how far it went in the
budget. Below 0.5 the window reaches across 0, where the estimate of a slope is another. Bridges:
ReLU + tanh (a penalty between L1 and L0), Gated, Gated RI-L1, TopK, JumpReLU + quadratic frequency.

Stated before the run:
- Places of comparison: L0 = 16, 32, 64, 128 (`PLACES`), those that lie inside the range of every
  seed of all four cells; monotone interpolation in log L0, no extrapolation. Firing frequencies are
  also compared at equal delta LM loss.
- Changed after the first seed was seen: delta LM loss is compared at L0 = 16, 32 and 64 alone, and
  matched at 0.03, 0.06, 0.12 and 0.2 nats. At L0 = 128 the best cells cost the model 0.00 +- 0.02
  nats on these tokens, a logarithm of noise; at 64 the interval over documents of such a cell is
  still as wide as its value. The contrast of gradient paths was added then, too.
- Added after three seeds were seen: effects at each place, and shares of L0 above 20% and above ten
  times the mean frequency; after the review of another study, above 5%. At these widths 10% is near
  the mean frequency (1.4% at L0 = 16, 11% at 128).
- Outcomes: log FVU, log delta LM loss, `above_10pct`, `above_1pct`, `l0_share_above_10pct`.
- An effect is called one if the 95% t-interval over paired seeds of its mean over the places
  excludes 0. Twelve main effects (three outcomes, two factors, two squares) decide the sentences;
  intervals are not corrected for their number. They hold neither the noise of the text (all arms
  are measured on the same documents) nor another order of the data (it is one for all).
- Fairness: every line, cell or bridge, gets the same number of tuning trials (`TRIALS`: learning
  rate; and with it, where there is a window, the thresholds' learning rate and start and eps), at
  half the tokens, on one seed and on documents that are not reported: preset `tuning`, `sae-bench
  run factorial --preset tuning --out results/runs/factorial-tuning`. The trial of the lowest FVU at
  L0 = 40 (log-log between settings) is the line's in `TUNED`.
- Changed after everything had been trained: two settings a trial had been too few (a chord between
  them favours trials whose settings lie further from L0 = 40), so the trials of the cells were run
  again with three. JumpReLU + L1 (theta) is 2.7% better with the thresholds' other rate and start,
  and was trained anew with them. Winners by less than 1% changed nothing: ReLU + L1 0.8% at 1.2e-2
  (a rate that no line with a window tried), ReLU + L0 0.2% at 1.6e-2, JumpReLU + L0 (theta) 0.2%
  with the other rate and start.

Of seven trials a line the last three were added when the best of four lay at the end of the range
of learning rates. What the trials do not say: those of ReLU + L0 are five different ones (rate and
start of thresholds mean nothing there), and trials whose settings lie on one side of L0 = 40 have
no value (of the cells 9 of 42). At L0 = 16 few cells have two trials to compare, and rates above
8e-3 may be better there: ReLU + L1 at 1.2e-2 is by 1.6% at 22, the sparsest that 8e-3 reaches.
Trials of the bridges have two settings: TopK would be 1.9% better at 4e-3 at L0 = 16, ReLU + tanh
perhaps 1 to 2% at 1.2e-2. Run again with three (`tables/bridges_tuning.csv`), TopK is 1.4% better
at 4e-3 at L0 = 40, which is not trained yet; the others' winners hold within 0.3%. tanh's c was not
tuned, nor were AuxK and lower rates of the thresholds for the quadratic penalty and L1, which won
at the lowest. Settings of the bridges were chosen anew after their trials.

Scale of `study`: SmolLM2-135M after layer 9, 217k cached tokens of 875 documents (their first 1,000
characters; docstrings of Python libraries), 33k held-out tokens of 131 others, 400k training tokens
(about 2 passes), 1,152 latents, 6 settings, 5 paired seeds of each cell and 3 of each bridge: 270
arms. On two cores a seed of the cells (36 arms) takes 18 minutes to train, 39 ms a step (most are
dense: few settings end below a fifth of the latents on before the penalty is there), and 5 to
measure, nearly all of them 4,096 tokens of language model; a seed of the bridges 17 in all.

The figures `convergence` and `bridges_convergence` follow, of each line and of three of its seeds
(cells 0, 3 and 4, bridges 0 to 2), the settings that end nearest to L0 = 32 and 128. L0 changes
along a curve (by up to 16 times in the cells, 50 in the bridges), so FVU is not comparable within
one; much of what follows 250k tokens is the fall of the learning rate, so it does not show what a
longer run would reach. Controls on the trained ReLU + L1, codes rescaled and thresholds swept after
training, are the further table `controls`, where it has been made.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._bridges import beside_cells, from_cells
from ablations._controls import compared, controlled, controls, from_trained
from ablations._convergence import CONVERGENCE, convergence, converging
from ablations._documents import document_noise, noise_in_words
from ablations._factorial_figures import effects, frequent, frontiers, histograms
from ablations._lines import (
    BANDS,
    BRIDGES,
    CELLS,
    LINES,
    TRIALS,
    TUNED,
    WIDE_TRIALS,
    Tuned,
    prepared,
    trials,
)
from ablations._outcomes import (
    DECISIVE,
    FLOOR,
    FREQUENT,
    FVU,
    LOSS,
    MATCHED,
    OTHER_BOUNDS,
    OUTCOMES,
    PLACES,
    with_shares,
)
from ablations._squares import SIDES, WAYS, between_paths, by_place, paths, sentence, summary
from sae_bench.ablation import Data, Finished, Preset
from sae_bench.arm import Arm
from sae_bench.contrasts import at_each_place, compare, intervals
from sae_bench.recipe import Recipe
from sae_bench.results import Results
from sae_bench.text import After, Documentation, Excerpts


@dataclass(frozen=True)
class Factorial(Preset):
    """A preset with the settings of the lines.

    Args:
        seeds: seeds of the cells, paired.
        bridge_seeds: seeds of the bridges.
        lines: the cells and bridges that are trained.
        settings: which of a line's six settings.
        tuned: values to train each line with, in the order of `LINES`.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    bridge_seeds: tuple[int, ...] = (0, 1, 2)
    lines: tuple[str, ...] = tuple(LINES)
    settings: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    tuned: tuple[tuple[Tuned, ...], ...] = tuple(TUNED.values())

    def parts(self) -> dict[str, Preset]:
        """The cells, then the bridges, each seed by itself: published as it ends."""
        made: dict[str, Preset] = {}
        for kind, known, seeds in (
            ("cells", CELLS, self.seeds),
            ("bridges", BRIDGES, self.bridge_seeds),
        ):
            lines = tuple(name for name in self.lines if name in known)
            for seed in seeds if lines else ():
                one = {"seeds": (seed,), "bridge_seeds": (seed,)}
                made[f"{kind}-{seed}"] = self.replace(lines=lines, **one)
        return made


TEXT = Excerpts(Documentation(), 1_000)
RECIPE = Recipe(
    tokens=400_000,
    batch_size=512,
    betas=(0.9, 0.999),
    lr_warmup=40,
    lr_decay=160,
    penalty_warmup=200,
    centre=True,
)
STUDY = Factorial(
    data=Data(text=TEXT, tokens=200_000, held_out_tokens=32_768, lm_tokens=4_096),
    d_sae=1152,
    recipe=RECIPE,
)
TUNING = STUDY.replace(
    data=Data(text=After(TEXT, 3_000), tokens=65_536, lm_tokens=0),
    recipe=RECIPE.stretched(0.5),
    seeds=(100,),
    bridge_seeds=(100,),
    settings=(2, 3, 4),
    tuned=tuple(TRIALS.values()),
)
PRESETS = {
    "study": STUDY,
    "tuning": TUNING,
    "wide-tuning": TUNING.replace(
        d_sae=16_384,
        recipe=TUNING.recipe.replace(lr_warmup=200),
        lines=WAYS["gradients to theta only*"].cells,
        settings=(3, 5),
        tuned=tuple(WIDE_TRIALS.values()),
    ),
    "pilot": STUDY.replace(
        data=Data(text=Excerpts(Documentation(), 1_500), lm_tokens=2_048),
        recipe=RECIPE.replace(tokens=256_000, batch_size=256, lr_decay=200),
        seeds=(0, 1),
        lines=tuple(CELLS),
        settings=(1, 3, 5),
    ),
}


def arms(preset: Factorial) -> list[Arm]:
    """Every line over its settings, its tuned values and its seeds."""
    made, tried = [], dict(zip(LINES, preset.tuned, strict=True))
    for name in preset.lines:
        line = LINES[name]
        seeds = preset.seeds if name in CELLS else preset.bridge_seeds
        for tuned in tried[name]:
            for index in preset.settings:
                made += line.arms(line.settings[index], tuned, preset.d_sae, preset.recipe, seeds)
    return made


def _has_squares(table: pd.DataFrame) -> bool:
    return set(CELLS) <= set(table["cell"])


def measured_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Every contrast of every outcome in both 2x2s; see `contrasts.compare`.

    Args:
        table: what `prepared` gives.
    """
    return compare(table, WAYS, OUTCOMES, "cell")


def contrasts(results: Results) -> pd.DataFrame:
    """Every contrast of both 2x2s, means over places and place by place: `contrasts.at_each_place`,
    with l0 (or delta_lm_loss, nats) for its logarithm `at`; of `OTHER_BOUNDS` means alone. Then,
    under ways of their own, one line (of) minus another (to): bridges and cells, paths of the
    gradient, controls."""
    table = prepared(results.table)
    if results.table["seed"].nunique() < 2 or not _has_squares(table):
        return pd.DataFrame()
    found = at_each_place(table, WAYS, OUTCOMES, "cell")
    by_loss = found["outcome"].str.endswith("delta LM loss")
    at = np.exp(found.pop("at")).round(6)
    rows = [found.assign(l0=at.where(~by_loss), delta_lm_loss=at.where(by_loss))]
    if len(results.frequencies):
        rows.append(_by_other_bounds(table, results.frequencies))
    rows.append(from_cells(table, BRIDGES, DECISIVE).assign(way="bridges"))
    rows.append(between_paths(table, DECISIVE).assign(way="paths of the gradient"))
    if "controls" in results.further:
        apart = from_trained(table, results.further["controls"])
        rows.append(apart.assign(way="controls", outcome=FVU.name))
    return pd.concat([each for each in rows if len(each)], ignore_index=True)


def _by_other_bounds(table: pd.DataFrame, frequencies: pd.DataFrame) -> pd.DataFrame:
    return compare(with_shares(table, frequencies), WAYS, OTHER_BOUNDS, "cell")


def _other_bounds(found: pd.DataFrame) -> list[str]:
    outcomes = {each.name: each for each in OTHER_BOUNDS}
    said = []
    for way, rows in found.groupby("way", sort=False):
        said.append(f"Frequent by other bounds, {way}:")
        for name, each in rows.groupby("outcome", sort=False):
            said.append(sentence(outcomes[str(name)], intervals(each), int(each["places"].iloc[0])))
    return said


def _collapse(table: pd.DataFrame) -> str:
    if "theta_over_eps" not in table:
        return "  theta/eps was not measured in this table."
    rows = table.dropna(subset=["theta_over_eps"]).groupby("cell")[["theta_over_eps", "theta_at_0"]]
    return "\n".join(
        f"  {name}: median theta/eps {row['theta_over_eps']:.3g}, "
        f"{row['theta_at_0']:.0%} of the thresholds at 0"
        for name, row in rows.mean().iterrows()
    )


def answer(results: Results) -> str:
    """The verdict with its numbers for both 2x2s, and what would change it. Tables of one seed are
    tuning: the trials of each line."""
    table = prepared(results.table)
    if table["seed"].nunique() < 2:
        return trials(table).to_string(index=False)
    if not _has_squares(table):
        return "No answer without all six cells: `publish` puts parts of several runs together."
    found = measured_effects(table)
    seeds = table[table["cell"].isin(CELLS)]["seed"].nunique()
    said = [
        "Is the gain due to the activation, the penalty, both, or neither? Means over places of "
        f"the differences of {seeds} paired seeds, with 95% t-intervals over seeds (*ReLU + L0 has "
        "no theta: its gradients go to the input in both 2x2s). Places are those that all four "
        f"cells reach, of L0 {', '.join(map(str, PLACES))} (loss: the first three), or of "
        f"{', '.join(map(str, MATCHED))} nats of delta LM loss.",
    ]
    said += summary(found, DECISIVE)
    calls: list[tuple[float, str]] = []
    for (way, name), rows in found.groupby(["way", "outcome"], sort=False):
        outcome = next(each for each in OUTCOMES if each.name == name)
        known = intervals(rows)
        said += [f"{way}:"] if outcome == FVU else []
        said.append(sentence(outcome, known, int(rows["places"].iloc[0])))
        if outcome in DECISIVE:
            calls += [
                (each.margin / each.half_width, f"{SIDES[side]}, {name}, {way}")
                for side, each in known.items()
                if side in ("A", "B") and each.half_width > 0
            ]
    for way in WAYS:
        said.append(f"Place by place, {way}:")
        for outcome in (FVU, FREQUENT[0]):
            said += by_place(table, outcome, way)
    if len(results.frequencies):
        said += _other_bounds(_by_other_bounds(table, results.frequencies))
    if between := beside_cells(table, BRIDGES, DECISIVE):
        said += ["The bridges against cells:", *between]
    said.append("What straight-through gradients to the input change in JumpReLU:")
    said += paths(table, DECISIVE)
    if "documents" in results.further:
        said += noise_in_words(results.further["documents"], STUDY.seeds[-1])
    if "controls" in results.further:
        said += compared(table, results.further["controls"])
    said += ["JumpReLU's thresholds, means over arms:", _collapse(table)]
    if calls:
        margin, which = min(calls)
        said.append(
            f"What would change it: the closest call is {which}, which changes sides if its mean "
            f"moves by {margin:.2f} half-widths of its interval. Intervals hold the spread over "
            "seeds, which draw the weights: the order of the data is the same. Other orders, "
            "widths, models, texts and longer training are outside them."
        )
    return "\n".join(said)


SHOWN = {
    FVU.name: "log FVU at matched L0",
    LOSS.name: "log delta LM loss at matched L0",
    FREQUENT[0].name: "share of L0 above 10%, matched L0",
    FREQUENT[1].name: "the same, matched delta LM loss",
}
"""Outcomes whose effects are drawn, and their titles."""


def documents(finished: Finished) -> pd.DataFrame:
    """The contrasts of FVU and delta LM loss with intervals over documents, whose noise is that of
    the text: once, in the part of the last seed."""
    is_last = set(finished.table["seed"].dropna()) == {STUDY.seeds[-1]}
    return document_noise(finished, WAYS, (FVU, LOSS)) if is_last else pd.DataFrame()


FURTHER = {"convergence": convergence, "documents": documents, "controls": controls}


CAPTIONS = {
    "fvu_vs_l0": BANDS,
    "delta_lm_loss_vs_l0": BANDS,
    "bridges_fvu_vs_l0": BANDS,
    "bridges_delta_lm_loss_vs_l0": BANDS,
    "high_frequency": "Left against L0, right against delta LM loss. " + BANDS,
    "frequency_histograms": (
        "Firing frequencies at matched L0; the first bin holds all below 1e-4."
    ),
    "effects": (
        "Main effects and interaction in both 2x2s, means over places, 95% t-intervals over"
        " seeds: differences of logarithms, or of shares."
    ),
    "controls": "ReLU + L1 changed after training, beside what was trained; two seeds.",
    "convergence": "The cells. " + CONVERGENCE,
    "bridges_convergence": "The bridges, beside two of the cells. " + CONVERGENCE,
}


def figures(results: Results) -> dict[str, Figure]:
    """Frontiers with bands over seeds (cells, then bridges), the 2x2s, firing frequencies, the
    controls, FVU in training."""
    table = prepared(results.table)
    known = table[table["delta_lm_loss"].isna() | (table["delta_lm_loss"] > FLOOR)]
    beside = ("ReLU + L1", "JumpReLU + L0 (theta)", *BRIDGES)
    drawn = {
        "fvu_vs_l0": frontiers(table, "fvu", CELLS),
        "delta_lm_loss_vs_l0": frontiers(known, "delta_lm_loss", CELLS),
        "high_frequency": frequent(table, known),
    }
    if table["cell"].isin(CELLS).any():
        drawn["frequency_histograms"] = histograms(table, results.frequencies)
    if table["cell"].isin(BRIDGES).any():
        drawn["bridges_fvu_vs_l0"] = frontiers(table, "fvu", beside)
        drawn["bridges_delta_lm_loss_vs_l0"] = frontiers(known, "delta_lm_loss", beside)
    if table["seed"].nunique() > 1 and _has_squares(table):
        drawn["effects"] = effects(measured_effects(table), SHOWN, SIDES)
    if "controls" in results.further:
        drawn["controls"] = controlled(table, results.further["controls"])
    if "convergence" in results.further:
        histories = results.further["convergence"]
        drawn["convergence"] = converging(histories, CELLS)
        drawn["bridges_convergence"] = converging(histories, beside)
    return drawn
