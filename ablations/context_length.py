"""Which context length for the activations, fixed or variable; is 64 enough?

SAEs are trained on activations of contexts of 64, 256 and 1,024 tokens (`Packed`: attention crosses
from a document into the next one in its context) and of variable length (log-uniform from 16 to
1,024, cut from single documents), and each is evaluated in contexts of 64, 256 and 1,024 tokens of
held-out documents.

Stated before the run:
- Text: documents cut after 6,000 characters (about 1,750 tokens). Of 5,447 documents 2,252 have
  1,024 tokens or more; of the tokens in contexts of 1,024, 87% have more than 64 earlier tokens of
  their own document there, 55% more than 256 (cut after 1,000 characters: 71% and 8%).
- One scale s for all training caches, that of contexts of 256, so that coefficients and thresholds
  mean the same; saved SAEs take raw activations, so that the evaluation is common.
- Equal tokens: every arm sees 163,840 tokens, each of them once. Equal documents: all four policies
  read every token of a document, in the same order of documents (`VariableLength` cuts a document
  into pieces until nothing is left), so at equal tokens they have read equal documents, up to the
  rounding of caches to whole shards (below 7%, the table `reading` says how much): the two budgets
  are one here. They would part for policies that drop the rest of a document.
- Places of comparison: L0 = 16, 32, 64 for FVU, 16 and 32 for delta LM loss (at 64 it is little
  more than the noise of 2,048 tokens), those that all seeds of all four training contexts reach on
  the evaluation set; monotone interpolation in log L0. Differences are from training on 256, means
  over places, 95% t-intervals over 3 seeds, which draw the weights and the order of the data.
- A context length is enough for an evaluation set if the interval of its effect on FVU, mean over
  both lines, ends below +2% (`MARGIN`); not enough if otherwise all of it is above 0; else that is
  not decided.
- Lines: TopK and JumpReLU + L0, at the learning rate that the trials of `ablations/factorial.py`
  chose for both; every training context gets the same settings, none a tuning of its own.
- By position (`_positions.py`), in contexts of 1,024: FVU and L0 at a mean L0 of 32. Delta LM loss
  is not measured by position: bins would need many more tokens than a study of minutes affords.
- Does 64 elicit other features? (`_vanishing.py`): firings beyond position 256 in contexts of 1,024
  that vanish when the model reads only the last 64 tokens, with the last 256 tokens beside it, and
  a control that cuts away as much text of other documents. It does if by SAEs trained on 1,024, of
  both lines, more vanishes than by the control (intervals over documents above 0); it does not if
  these intervals end below 2 points. Both can hold; then it does, by less than that.

Changed after a review of the first report: delta LM loss is compared in nats (13 of 72 arms had a
negative one in contexts of 64, which a logarithm drops by its sign) and at places that both lines
reach; the question above said "fewer" where firings are exchanged, and had no words for both rules.

What favours the reference: settings were tuned on contexts of 256, whose scale is everyone's (norms
differ by -2% to +4%). What is not told apart: text and position, and in `variable` the lengths and
the cuts at the ends of documents.

Scale of `study`: 4 training contexts, 2 lines, 3 settings, 3 seeds: 72 arms of 1,152 latents, 320
steps of 512. On two cores 7 minutes of extraction (4 x 200k tokens), 12 of training, 8 to 12 for
delta LM loss on 2,048 tokens of each evaluation set, 7 for the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._lines import BANDS, Tuned
from ablations._matched import (
    ALL,
    BOTH,
    FVU,
    LINES,
    LOSS,
    VARIABLE,
    effects,
    in_words,
    interval_of,
    lengths_of,
    measured,
    opposed,
    trained_on,
)
from ablations._positions import apart_by_position, at_l0, by_position, positions
from ablations._turnover import described, named, shares, tabulated, turnover
from ablations._vanishing import NEAR, latents, vanishing
from ablations.factorial import RECIPE
from architectures import JumpReLUSAE, TopKSAE
from architectures.topk import AuxK
from sae_bench import bands, plots
from sae_bench.ablation import Data, Finished, Origin, Preset
from sae_bench.activations import TopK
from sae_bench.arm import Arm, grid
from sae_bench.contexts import ContextPolicy, Packed, VariableLength
from sae_bench.contrasts import Interval
from sae_bench.penalties import L0
from sae_bench.results import Results
from sae_bench.text import Documentation, Excerpts

MARGIN = 0.02
"""Of log FVU: what a context length may cost and still be enough."""


@dataclass(frozen=True)
class ContextLength(Preset):
    """A preset with its contexts and the settings of each line.

    Args:
        lengths: of the fixed contexts, ascending; the second is what the others are compared to.
        shortest: of the variable contexts; the longest is the last of `lengths`.
        k: of TopK.
        jumprelu: coefficients of L0.
        tuned: how JumpReLU starts and learns; its learning rate is everyone's.
        seeds: paired; they draw weights and the order of the data.
    """

    lengths: tuple[int, int, int] = (64, 256, 1024)
    shortest: int = 16
    k: tuple[int, ...] = (80, 32, 13)
    jumprelu: tuple[float, ...] = (1.9e-4, 5.2e-4, 1.6e-3)
    tuned: Tuned = Tuned(lr=8e-3)
    seeds: tuple[int, ...] = (0, 1, 2)

    def parts(self) -> dict[str, Preset]:
        """One for each training context."""
        variable = VariableLength(self.shortest, self.lengths[-1])
        contexts: dict[str, ContextPolicy] = {str(n): Packed(n) for n in self.lengths}
        contexts |= {VARIABLE: variable}
        return {name: self.replace(data=self._read_in(each)) for name, each in contexts.items()}

    def evaluation(self) -> dict[str, Origin]:
        """The fixed contexts."""
        return {str(n): self._read_in(Packed(n)) for n in self.lengths}

    def scaled_by(self) -> Origin:
        """The activations of the reference, for all parts."""
        return self._read_in(Packed(self.lengths[1]))

    def _read_in(self, context: ContextPolicy) -> Origin:
        return self.data.replace(context=context)


PRESETS = {
    "study": ContextLength(
        data=Data(
            text=Excerpts(Documentation(), 6_000),
            tokens=163_840,
            held_out_tokens=32_768,
            lm_tokens=2_048,
        ),
        d_sae=1152,
        recipe=RECIPE.stretched(0.4).replace(tokens=163_840),
    ),
}


def arms(preset: ContextLength) -> list[Arm]:
    """Both lines over their settings and seeds."""
    tuned = preset.tuned
    jump: dict[str, Any] = {"activation": tuned.activation, "kernel": tuned.estimator()}
    made: list[Arm] = []
    for seed in preset.seeds:
        recipe = preset.recipe.replace(lr=tuned.lr, threshold_lr=tuned.threshold_lr, data_seed=seed)
        common: dict[str, Any] = {"d_sae": preset.d_sae, "recipe": recipe, "seed": seed}
        ranks, penalties = [TopK(k) for k in preset.k], [L0(c) for c in preset.jumprelu]
        made += grid(TopKSAE, activation=ranks, aux=AuxK(dead_after=50_000), **common)
        made += grid(JumpReLUSAE, penalty=penalties, **jump, **common)
    return made


def reading(finished: Finished) -> pd.DataFrame:
    """What was cached for training, one row: tokens, documents, contexts, the share of tokens at
    positions from each evaluation length on, and relative_norm: the root mean square norm in units
    of the common s."""
    cache = finished.cache
    columns = cache.columns()
    squares = sum(float(x.double().square().sum()) for x in cache.chunks(8192))
    row: dict[str, Any] = {
        "tokens": cache.rows,
        "documents": len(np.unique(columns.document)),
        "contexts": len(np.unique(columns.context)),
        "relative_norm": (squares / cache.rows) ** 0.5 / cache.scale,
    }
    far = {
        f"from_{name}": float((columns.position >= int(name)).mean())
        for name in finished.evaluation
    }
    return pd.DataFrame([row | far])


FURTHER = {
    "reading": reading,
    "positions": positions,
    "vanishing": vanishing,
    "latents": latents,
}


def call(effect: Interval) -> str:
    """Whether a training context is enough, by its effect on log FVU."""
    if effect.high < MARGIN:
        return "enough"
    return "not enough" if effect.low > 0 else "not decided"


def _verdicts(found: pd.DataFrame, sets: list[str], trained: list[str]) -> list[str]:
    """Which fixed contexts are enough, fixed or variable."""
    reference, said = sets[1], []

    def by_set(contrast: str) -> dict[str, Interval]:
        where = {"outcome": FVU.name, "line": BOTH, "contrast": contrast}
        return {name: interval_of(found, evaluate=name, **where) for name in sets}

    for name in (each for each in sets if each in trained and each != reference):
        words = ", ".join(
            f"{call(effect)} in contexts of {evaluate} ({in_words(effect)})"
            for evaluate, effect in by_set(name).items()
        )
        said.append(f"Is {name} enough? FVU of SAEs trained on it, against {reference}: {words}.")
    if VARIABLE in trained:
        effects_in = by_set(VARIABLE)
        shown = ", ".join(f"{in_words(each)} in {name}" for name, each in effects_in.items())
        bounds = [abs(x) for each in effects_in.values() for x in (each.low, each.high)]
        word = "differ by more than" if not max(bounds) < MARGIN else "differ by less than"
        said.append(
            f"Fixed or variable? Variable and {reference} {word} {MARGIN:.0%} of FVU in "
            f"{'every' if word.endswith('less than') else 'some'} evaluation context: {shown}."
        )
    return said


def _effects_in_words(found: pd.DataFrame, sets: list[str], trained: list[str]) -> Iterable[str]:
    reference = sets[1]
    for outcome, unit in ((FVU, ""), (LOSS, " in nats")):
        rows = found[found["outcome"] == outcome.name].drop_duplicates("evaluate")
        at = rows.set_index("evaluate")["places"]
        yield (
            f"{outcome.name}{unit} against training on {reference}, mean over L0 {at[ALL]} and "
            f"over lines ({' and '.join(LINES)} in brackets):"
        )
        for name in trained:
            if name == reference:
                continue
            shown = []
            for evaluate in sets:
                where = {"outcome": outcome.name, "evaluate": evaluate, "contrast": name}
                both = in_words(interval_of(found, line=BOTH, **where), outcome)
                lines = [
                    in_words(interval_of(found, line=line, **where), outcome) for line in LINES
                ]
                apart = ", ".join(each.partition(" ")[0] for each in lines)
                shown.append(
                    f"in {evaluate} {both} ({apart})" if at[evaluate] else f"in {evaluate} {both}"
                )
            yield f"  trained on {name}: {'; '.join(shown)}."
    for name, evaluate in opposed(found, trained, sets):
        yield (
            f"  FVU and loss disagree for training on {name} in contexts of {evaluate}: each "
            "interval excludes 0, on opposite sides."
        )


def _reading_in_words(found: pd.DataFrame, table: pd.DataFrame) -> str:
    documents, norms = found["documents"], found["relative_norm"]
    apart = documents.max() / documents.min() - 1
    shown = ", ".join(
        f"{row.part} {row.tokens} tokens of {row.documents} documents"
        for row in found.set_index("part").loc[trained_on(table)].reset_index().itertuples()
    )
    return (
        f"Cached for training: {shown}. Documents differ by {apart:.1%} at most, so that equal "
        "tokens and equal documents are one budget here; root mean square norms are "
        f"{norms.min():.3f} to {norms.max():.3f} of the common s."
    )


def answer(results: Results) -> str:
    """Whether 64 is enough, fixed or variable, which firings vanish, and what is not decided."""
    table = measured(results.table)
    sets, trained, further = lengths_of(table), trained_on(table), results.further
    if missing := [name for name in sets[:2] if name not in trained]:
        return f"Nothing to compare yet: not among the parts: {', '.join(missing)}."
    found = effects(table)
    said = [*_verdicts(found, sets, trained), *_effects_in_words(found, sets, trained)]
    if not further.get("positions", pd.DataFrame()).empty:
        apart = _by_position(results, table)
        last = int(apart["position"].max())
        shown = ", ".join(
            f"trained on {name} {in_words(interval_of(apart, position=last, contrast=name))}"
            for name in trained
            if name != sets[1]
        )
        said.append(
            f"FVU at positions from {last} on in contexts of {sets[-1]}, L0 {NEAR}: {shown}."
        )
    if not further.get("vanishing", pd.DataFrame()).empty:
        said += described(*_cuts(results, table), sets, trained)
    if not further.get("reading", pd.DataFrame()).empty:
        said.append(_reading_in_words(further["reading"], table))
    said.append(
        "Not decided: longer training and wider SAEs, which have room for rarer latents; other "
        "texts and models; policies that drop the rest of a document. Intervals of FVU and loss "
        "hold the spread over seeds alone: documents are the same for all, those of training and "
        f"{int(table['documents'].max())} held-out ones (for the loss some "
        f"{int(table['lm_tokens'].max())} tokens, {_contexts(table, sets[-1])} contexts of "
        f"{sets[-1]}, other text in each set)."
    )
    return "\n".join(said)


def _contexts(table: pd.DataFrame, length: str) -> int:
    """How many contexts of a length the language model was scored on."""
    scored = table.loc[table["eval_set"] == length, "lm_tokens"].max()
    return round(scored / int(length))


def _by_position(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """`apart_by_position` from the reference, at L0 `NEAR` in the longest contexts."""
    _, reference, long = lengths_of(table)
    found = apart_by_position(at_l0(results.further["positions"], table, "fvu", NEAR), reference)
    return found.assign(outcome=FVU.name, evaluate=long, line=BOTH, places=f"{NEAR}")


def _cuts(results: Results, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Firings that vanish by document, and by firing frequency."""
    further = results.further
    return named(further["vanishing"], table), named(further["latents"], table)


def contrasts(results: Results) -> pd.DataFrame:
    """Every training context minus the reference, FVU (logarithm) and delta LM loss (nats), that of
    FVU by position, too; and the shares of firings that vanish (`_turnover.tabulated`)."""
    table, further = measured(results.table), results.further
    found = [effects(table)]
    if not further.get("positions", pd.DataFrame()).empty:
        found.append(_by_position(results, table))
    if not further.get("vanishing", pd.DataFrame()).empty:
        found.append(tabulated(*_cuts(results, table), lengths_of(table)))
    return pd.concat(found, ignore_index=True)


CAPTIONS = {
    "fvu_vs_l0": BANDS,
    "effects": (
        "Against training on contexts of 256: mean over L0 and both lines, 95% t-intervals "
        "over seeds."
    ),
    "positions": (
        "FVU against that of training on 256, by position in contexts of 1,024, L0 32; "
        "bands span the seeds."
    ),
    "vanishing": (
        "Share of firings that vanish when the model reads less text; bars are 95% "
        "intervals over documents. Right: by firing frequency, all arms together."
    ),
}


def figures(results: Results) -> dict[str, Figure]:
    """Effects of the training context by evaluation context, frontiers, FVU by position, vanishing
    firings."""
    table, further = measured(results.table), results.further
    sets, trained = lengths_of(table), trained_on(table)
    drawn = {"fvu_vs_l0": _frontiers(table, sets[-1], trained)}
    if sets[1] in trained and len(trained) > 1:
        drawn["effects"] = _effects(effects(table), sets, trained)
    if not further.get("positions", pd.DataFrame()).empty:
        found = further["positions"]
        drawn["positions"] = by_position(found, table, list(LINES), trained, NEAR)
    if not further.get("vanishing", pd.DataFrame()).empty:
        short, middle, _ = sets
        found = shares(named(further["vanishing"], table), short)
        drawn["vanishing"] = turnover(found, further["latents"], short, middle, LINES, trained)
    return drawn


def _frontiers(table: pd.DataFrame, name: str, trained: list[str]) -> Figure:
    drawn = plots.figure(6.8, 2.6, 1, 2)
    rows = table[table["eval_set"] == name]
    for line, axes in zip(LINES, drawn.axes, strict=True):
        here = rows[rows["line"] == line]
        bands.bands(here, axes, x="l0", y="fvu", by="part", lines=bands.ordered(trained))
        bands.logarithmic(axes)
        axes.set_title(f"{line}, evaluated in contexts of {name}", fontsize=8)
    bands.label_ends(drawn.axes[1])
    return drawn


def _effects(found: pd.DataFrame, sets: list[str], trained: list[str]) -> Figure:
    reference = sets[1]
    names = {name: f"trained on {name}" for name in trained if name != reference}
    drawn = plots.figure(6.8, 2.6, 1, 2)
    for outcome, axes in zip((FVU, LOSS), drawn.axes, strict=True):
        rows = found[(found["outcome"] == outcome.name) & (found["line"] == BOTH)]
        rows = rows[rows["evaluate"].isin(sets)]
        rows = rows.assign(evaluate="evaluated in " + rows["evaluate"])
        if outcome == FVU:
            ends = ["mean", "low", "high"]
            rows[ends] = 100 * np.expm1(rows[ends])
        bands.effects(rows, axes, names=names, by="evaluate")
        axes.set_title(f"{outcome.name} against training on {reference}", fontsize=8)
        axes.set_xlabel("change in %, L0 matched" if outcome == FVU else "nats, L0 matched")
    drawn.axes[1].set_yticklabels([])
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return drawn
