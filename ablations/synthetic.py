"""Does what the factorial says hold where the features are known?

The six cells of `ablations/factorial.py` on activations made of known features: x = sum_i c_i d_i +
noise (`sae_bench/synthetic.py`), 512 unit directions d_i in 128 dimensions, 8 of them in a token on
average, firing with probabilities that fall as (i + 1)^-0.8 from 0.6 to 0.004, half-normal c_i,
noise of root mean square norm 0.3 (1% of E||x||^2). On the language model both JumpReLU for ReLU
and L0 for L1 lower FVU at matched L0, and how many latents are frequent hangs on the path of the
gradient. Here it is known which features there are, and how frequent they should be.

Measured besides the table (`recovered`), one row an arm, on fresh tokens where codes are needed:

    cosine      mean over true features of the largest cosine with a decoder row
    recovered   share of features where that is above 0.9
    rare        the same of the rarer half of the features
    precision   of the latents nearest to recovered features: share of their firings in which the
                feature is there, mean over features
    recall      share of the feature's tokens in which the latent fires; below 1 whatever the SAE,
                since small c_i drown
    true_share  share of the true L0 in features that fire on more than 10% of tokens

Stated before the run:
- Outcomes: log FVU, share of features recovered, share of L0 in latents above 10%; at L0 = 4, 6, 8,
  12, 16, 24, those inside the range of all seeds of all four cells of a 2x2, monotone interpolation
  in log L0. An effect is one if the 95% t-interval over paired seeds excludes 0.
- Changed after a review of the first report: effects are told place by place, since some change
  sign between them, and two cells that had not reached L0 = 4 were given sparser settings.
- Changed after a second review: two more settings a cell, since with six no arm of JumpReLU + L0
  lay between L0 = 10 and 28, so that its values at 12, 16 and 24 were interpolated over a gap; and
  the share of dead latents is an outcome, too.
- A seed is a world of its own, a part: it draws the directions, the tokens and the weights.
- Learning rates, start of the thresholds and eps are those tuned on the language model, for all
  cells alike; none was tuned here.
- Coefficients are for this data alone. For other data `settings(preset)` finds them anew with
  `calibrate`, pilots and full runs of every cell in the first world (5 to 10 minutes).

Scale of `study`: 512 latents, 131k training tokens seen three times, 6 cells, 8 settings, 3 seeds:
144 arms of 768 steps of about 6 ms on two cores, 11 minutes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ablations import factorial
from ablations._lines import CELLS, TUNED, prepared, styled
from ablations._squares import SIDES, WAYS, saying
from ablations._threshold_noise import text
from sae_bench import bands, plots
from sae_bench.ablation import Finished, Origin, Preset
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.calibrate import calibrate
from sae_bench.contrasts import (
    Interval,
    Outcome,
    Square,
    at_each_place,
    matched,
    t_interval,
)
from sae_bench.results import Results
from sae_bench.sae import SparseAutoencoder
from sae_bench.synthetic import SyntheticFeatures, closest

PLACES = (4, 6, 8, 12, 16, 24)
"""Values of L0 at which cells are compared."""
AT = tuple(float(x) for x in np.log(PLACES))
FRESH = 8_192
"""Fresh tokens on which firings are compared with features."""
NEAR = 0.9
"""Cosine above which a feature is recovered."""
FREQUENT = 0.1
L0 = 8.0
"""The true one."""


@dataclass(frozen=True)
class Made(Origin):
    """Activations made of known features.

    Args:
        features: what they are made of.
        tokens: of training.
        held_out: share of all tokens that are for evaluation.
        seed: draws the tokens.
    """

    features: SyntheticFeatures
    tokens: int
    held_out: float = 0.1
    seed: int = 0

    def cache(self, device: str | None = None) -> ActivationCache:
        """Makes them."""
        return self.features.cache(self.tokens, self.seed, self.held_out)

    def world(self, seed: int) -> "Made":
        """The same with other directions and other tokens."""
        return self.replace(features=self.features.replace(seed=seed), seed=seed)


@dataclass(frozen=True)
class Planted(Preset):
    """A preset with coefficients of its own.

    Args:
        coefficients: of each cell, in the order of `CELLS`, from dense to sparse.
        seeds: a world each.
    """

    coefficients: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...] = (0, 1, 2)

    def parts(self) -> dict[str, Preset]:
        """The worlds."""
        assert isinstance(self.data, Made)
        worlds = {seed: self.data.world(seed) for seed in self.seeds}
        return {f"{n}": self.replace(seeds=(n,), data=world) for n, world in worlds.items()}


STUDY = Planted(
    data=Made(SyntheticFeatures(128, 512, L0, decay=0.8, noise=0.3), tokens=131_072),
    d_sae=512,
    recipe=factorial.RECIPE.replace(tokens=393_216),
    coefficients=(
        (0.06, 0.088, 0.12, 0.15, 0.2, 0.32, 0.48, 0.7),
        (3e-3, 3.9e-3, 5e-3, 6.8e-3, 9e-3, 1.5e-2, 3e-2, 6e-2),
        (1.5e-3, 3e-3, 3.8e-3, 4.8e-3, 6e-3, 1.1e-2, 2e-2, 3.5e-2),
        (1.5e-3, 3e-3, 3.8e-3, 4.8e-3, 6e-3, 1.1e-2, 2e-2, 3.8e-2),
        (0.055, 0.07, 0.09, 0.115, 0.14, 0.2, 0.3, 0.45),
        (0.05, 0.075, 0.085, 0.11, 0.14, 0.22, 0.33, 0.5),
    ),
)
PRESETS = {"study": STUDY}


def _cell(preset: Planted, name: str, coefficient: float) -> list[Arm]:
    (tuned,) = TUNED[name]
    return CELLS[name].arms(coefficient, tuned, preset.d_sae, preset.recipe, preset.seeds)


def arms(preset: Planted) -> list[Arm]:
    """Every cell over its coefficients and the seeds."""
    found = zip(CELLS, preset.coefficients, strict=True)
    return [arm for name, several in found for c in several for arm in _cell(preset, name, c)]


def settings(
    preset: Planted, l0: Sequence[float] = (30, 22, 16, 12, 8, 6, 4.5, 3.5), rounds: int = 2
) -> dict[str, tuple[float, ...]]:
    """The coefficients of each cell that give these L0s in the first world, by `calibrate`, which
    says on standard error how well.

    Args:
        preset: whose coefficients are where the search starts.
        l0: wanted values.
        rounds: of full runs, at most.
    """
    first = next(iter(preset.parts().values()))
    assert isinstance(first, Planted)
    starts = zip(CELLS, preset.coefficients, strict=True)
    prototypes = [arm for name, several in starts for arm in _cell(first, name, several[2])]
    found = calibrate(prototypes, first.data.cache(), list(l0), rounds=rounds)
    chosen = iter(arm.slots["penalty"].coefficient for arm in found)
    return {name: tuple(next(chosen) for _ in l0) for name in CELLS}


# -- what is measured on the trained SAEs ---------------------------------------------------------


@torch.no_grad()
def found_by(
    sae: SparseAutoencoder,
    features: SyntheticFeatures,
    x: Float[Tensor, "n d_in"],
    codes: Float[Tensor, "n n_features"],
) -> dict[str, float]:
    """How well an SAE knows the features: cosine, recovered, rare, precision, recall.

    Args:
        sae: takes x as it is.
        features: the most frequent ones first.
        x, codes: tokens, and what they are made of.
    """
    cosine, latent = closest(sae.W_dec, features.directions())
    on, there = sae.encode(x)[:, latent] > 0, codes > 0
    both, is_near = (on & there).sum(0), cosine > NEAR

    def share(of: Tensor) -> float:
        known = is_near & (of > 0)
        return (both[known] / of[known]).mean().item() if known.any() else math.nan

    return {
        "cosine": cosine.mean().item(),
        "recovered": is_near.float().mean().item(),
        "rare": is_near[features.n_features // 2 :].float().mean().item(),
        "precision": share(on.sum(0)),
        "recall": share(there.sum(0)),
    }


def recovered(finished: Finished) -> pd.DataFrame:
    """One row an arm that was measured; see the module's docstring."""
    data = finished.preset.data
    assert isinstance(data, Made)
    x, codes = data.features.sample(FRESH, data.seed + 1_000)  # no world's own
    p = data.features.probabilities()
    true = {"true_share": (p[p > FREQUENT].sum() / p.sum()).item()}
    measured = finished.table.loc[finished.table["l0"].notna(), "arm"].drop_duplicates()
    return pd.DataFrame(
        [
            {"arm": arm} | found_by(finished.sae(arm), data.features, x, codes) | true
            for arm in measured
        ]
    )


FURTHER = {"recovered": recovered}
KNOWN = ("cosine", "recovered", "rare", "precision", "recall")


# -- figures and answer ---------------------------------------------------------------------------

FVU = Outcome("log_fvu", "log_l0", "FVU at matched L0", AT)
FOUND = Outcome("recovered", "log_l0", "features recovered at matched L0", AT)
SHARE = Outcome("l0_share_above_10pct", "log_l0", "share of L0 above 10% at matched L0", AT)
DEAD = Outcome("dead", "log_l0", "dead latents at matched L0", AT)
OUTCOMES = (FVU, FOUND, SHARE, DEAD)
MAIN = {side: SIDES[side] for side in ("A", "B")}
SIMPLE = {
    "A without B": "JumpReLU for ReLU under L1",
    "A with B": "under L0",
    "B without A": "L0 for L1 with ReLU",
    "B with A": "with JumpReLU",
}
"""Contrasts, and what they are called."""
PATHS = dict(zip(WAYS, ("theta", "input"), strict=True))


def _known(results: Results) -> pd.DataFrame:
    """The measured rows with what is known of the features."""
    further = results.further["recovered"]
    return prepared(results.table).merge(further.drop(columns="part", errors="ignore"), on="arm")


def answer(results: Results) -> str:
    """The effects of activation and penalty at each L0, and what each cell recovers."""
    table = _known(results)
    seeds = table["seed"].nunique()
    said = [
        f"Known features, {seeds} paired worlds (directions, tokens, weights): main effects at "
        "each L0, 95% t-intervals over worlds (no mean of them, since they differ)."
    ]
    if seeds < 2:
        said.append("  One world has no interval: no verdict.")
        return "\n".join([*said, _recovery(table)])
    for outcome in OUTCOMES:
        found = {
            f"{name} ({path})": effects
            for way, path in PATHS.items()
            for name, effects in _at_places(table, outcome, WAYS[way], MAIN).items()
        }
        said += [f"  {outcome.name}: {name} {_directions(each)}." for name, each in found.items()]
        said.append(f"{outcome.name}:\n{_tabled(found, outcome)}")
        for way, path in PATHS.items() if outcome in (FVU, FOUND) else ():
            one_by_one = _at_places(table, outcome, WAYS[way], SIMPLE)
            said.append(f"{outcome.name}, one by one ({path}):\n{_tabled(one_by_one, outcome)}")
    said += [
        f"Of the true L0, {L0:g}, {table['true_share'].mean():.0%} is in features that fire on "
        "more than 10% of tokens.",
        _recovery(table),
        "A dead latent finds nothing: nothing here revives them, in any cell. Not decided: how "
        "many would be found with that, other sparsities and sizes of the dictionary, features "
        "that fire together or differ in scale, and learning rates tuned for this data.",
    ]
    return "\n".join(said)


def _tabled(found: Mapping[str, Mapping[str, Interval]], outcome: Outcome) -> str:
    say = saying(outcome)
    rows = {name: {x: say(each) for x, each in by.items()} for name, by in found.items()}
    return text(pd.DataFrame(rows).rename_axis("L0"), 3)


def _at_places(
    table: pd.DataFrame, outcome: Outcome, square: Square, contrasts: Mapping[str, str]
) -> dict[str, dict[str, Interval]]:
    """The contrasts under their names, by L0."""
    places = outcome.places(table, "cell", square.cells)
    found = square.contrasts(matched(table, outcome.x, outcome.y, places, "cell"))
    return {
        name: {f"{math.exp(x):.0f}": t_interval(found[key][x].to_numpy()) for x in places}
        for key, name in contrasts.items()
    }


def _directions(effects: Mapping[str, Interval]) -> str:
    """`falls at L0 6, 8; not decided at 12; rises at 16, 24`."""
    words = {"falls": [], "not decided": [], "rises": []}  # type: dict[str, list[str]]
    for place, each in effects.items():
        word = "not decided" if not each.excludes_zero else "falls" if each.mean < 0 else "rises"
        words[word].append(place)
    shown = (f"{word} at L0 {', '.join(places)}" for word, places in words.items() if places)
    return "; ".join(shown) or "has no common range of L0"


def _recovery(table: pd.DataFrame, l0: float = L0) -> str:
    columns = ("fvu", *KNOWN, "dead", SHARE.y)
    place = [float(np.log(l0))]
    shown = {
        y: matched(table, "log_l0", y, place, "cell").iloc[:, 0].groupby("cell").mean()
        for y in columns
    }
    best = table.groupby(["cell", "setting"])["recovered"].mean().groupby("cell").max()
    rows = pd.DataFrame(shown | {"best": best})
    rows = rows.reindex([name for name in CELLS if name in set(table["cell"])])
    names: Mapping[str, str] = {"fvu": "FVU", SHARE.y: "L0 above 10%"}
    return (
        f"At L0 {l0:g}, means over worlds that reach it (precision and recall are of the features "
        "that the cell recovers, others in each; best is the largest share that a setting of it "
        f"recovers, at whatever L0):\n{text(rows.rename(columns=names), 3)}"
    )


def contrasts(results: Results) -> pd.DataFrame:
    """The contrasts of both 2x2s, means over places and place by place."""
    found = at_each_place(_known(results), WAYS, OUTCOMES, "cell")
    return found.assign(l0=np.exp(found.pop("at")).round(6))


CAPTIONS = {
    "frontiers": (
        "Dashed: the true L0, and the true share. Curves are means over worlds, bands span them."
    ),
}


def figures(results: Results) -> dict[str, Figure]:
    """FVU, features recovered and share of L0 in frequent latents against L0, about the places of
    comparison; dashed what is true."""
    table = _known(results)
    drawn = plots.figure(9.0, 3.2, 1, 3)
    shown = table[table["l0"].between(PLACES[0] / 1.6, 1.6 * PLACES[-1])]
    for y, axes in zip(("fvu", FOUND.y, SHARE.y), drawn.axes, strict=True):
        bands.bands(shown, axes, x="l0", y=y, by="cell", lines=styled(CELLS))
        axes.axvline(L0, color="grey", linestyle="--", linewidth=0.7)
    bands.logarithmic(drawn.axes[0])
    drawn.axes[1].set_ylabel("Share of features recovered")
    drawn.axes[2].axhline(table["true_share"].mean(), color="grey", linestyle="--", linewidth=0.7)
    return {"frontiers": plots.legend_below(drawn, drawn.axes[0])}
