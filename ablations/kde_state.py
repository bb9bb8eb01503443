"""Would a KDE with state that persists across a few steps calm JumpReLU's threshold gradients?

And would that help training? The batch estimate sees few samples near a threshold: at batch 512 and
eps = 0.02, 10 times the density of pre-activations there. Five states are compared, each with
straight-through and exact-jump coefficients (`_estimators`): none (batch), momentum, the mean of
the last T gradients, a window over the samples of the last T steps, bandwidths that persist.

(i) `noise`: bias and variance of gradients at frozen weights (`_threshold_noise`), on JumpReLU + L0
trained with the batch estimate for 6%, 25% and 100% of 400k tokens (schedules shrunk alike). T = 8
at eps = 0.005, 0.01, 0.02, 0.04, and T = 2, 4, 8, 16 at 0.02; beside them the batch estimate at T
times the batch: equal samples. One pass over the cache serves all.

(ii) `training`: FVU at matched L0, thresholds that moved, steps to an L0, spread of thresholds over
data orders (`_threshold_training`), T = 8, eps = 0.02.

Stated before the run:
- A window reuses each sample T times. What an optimiser feels over many steps is the
  autocorrelation-integrated variance; at equal tokens it should stay as it is, for state and for
  larger batches alike. Exact jumps should lower it (no coin flip at the threshold).
- At frozen weights memory costs no bias. Staleness shows in training alone.
- Smoothing also raises the effective learning rate of thresholds under Adam. So every line has the
  same three threshold rates, 0.03, 0.1 and 0.3: this grid is the sweep. The rate of a line is
  chosen for each seed by the other seeds, at equal L0.
- Outcome: log FVU at L0 = 16, 24, 32, 48, 64, 96, those inside the range of all seeds of a 2x2
  (state or none, exact jump or straight-through); monotone interpolation over three coefficients.
  A state has an effect if the 95% t-interval over paired seeds, mean of both coefficients, excludes
  0. Four states, not corrected for their number. Seeds draw weights and data order.
- Adam's beta1 is 0.9, as in the recipe that was tuned, and averages over about 19 steps by itself;
  with 0, as in the paper (arXiv 2407.14435), state has more to do: preset `without-momentum`, whose
  learning rate was not tuned.
- Changed after noise had been measured once: the window had 16 places for each latent, too few for
  the frequent ones, and thinning gave back what memory took away (a step 42% of the batch
  estimate's variance instead of 12%, integrated 3.9 times; that run was not kept). It now has 64 a
  latent, shared: at eps = 0.04 again too few for the most frequent (integrated 3.8 times).
- FVU, not delta LM loss: 230 arms would spend 15 minutes on it.
- Added after training had been measured: every line had chosen the lowest rate, 0.03, so the part
  `training-lower` tries 0.01 and 0.003, for all lines alike, at the middle coefficient.

Scale of `study`: SmolLM2-135M after layer 9, 1,152 latents, batches of 512. Noise: 3 SAEs (1,022
steps, half a minute), 419 batches of 58 estimators each: 18 minutes on two cores, most of them in
windows. Training: 10 lines, 5 arms each (3 coefficients, 2 further rates), 4 seeds, and a second
data order of the first for 3 rates: 230 arms of 120k tokens, 234 steps of 45 ms on two cores, 40
minutes, and 6 of evaluation. Lower rates: 80 arms, 15 minutes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations import _threshold_noise, _threshold_training
from ablations._estimators import STEPS, line, lines, panel
from ablations._relative import RELATIVE
from ablations._threshold_measures import moved, spread, steps_to, theta_of
from ablations._threshold_training import (
    TARGET,
    cells,
    middle,
    trained,
)
from ablations.factorial import STUDY as FACTORIAL
from architectures import JumpReLUSAE
from sae_bench.ablation import Finished, Preset
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.arm import Arm, grid
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.noise import gradient_noise
from sae_bench.penalties import L0
from sae_bench.results import Results

START, KERNEL = 0.04, Rectangle(0.02)
NOISE, TRAINING, LOWER = "noise", "training", "training-lower"
"""The parts."""


@dataclass(frozen=True)
class State(Preset):
    """A preset whose recipe is that of the SAEs on which noise is measured.

    Args:
        share: of the recipe's tokens that the arms of `training` have.
        stages: shares that the SAEs of `noise` have.
        coefficients: of L0, at the base rate; the middle one also at the others.
        rates: learning rates of the thresholds; the middle one is the base.
        lower: further ones, of `training-lower`.
        seeds: paired; each draws the weights and the order of the data.
        orders: further data orders of the first seed.
        bandwidths: at which noise is measured with T = 8.
        memories: T at the bandwidth of training.
        block: see `gradient_noise`; its batches are those of the recipe.
    """

    share: float = 0.3
    stages: tuple[float, ...] = (0.06, 0.25, 1.0)
    coefficients: tuple[float, ...] = (1.6e-4, 4.5e-4, 1.3e-3)
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    lower: tuple[float, ...] = (0.003, 0.01)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    orders: tuple[int, ...] = (100,)
    bandwidths: tuple[float, ...] = (0.005, 0.01, 0.04)
    memories: tuple[int, ...] = (2, 4, 8, 16)
    block: int = 48

    def parts(self) -> dict[str, Preset]:
        """Noise at frozen weights, training, and training at the lower rates."""
        training = self.replace(stages=())
        at = (middle(self.coefficients),)
        lower = training.replace(coefficients=at, rates=self.lower, orders=())
        made: dict[str, Preset] = {NOISE: self.replace(seeds=()), TRAINING: training}
        return made | ({LOWER: lower} if self.lower else {})


STUDY = State(
    data=FACTORIAL.data.replace(lm_tokens=0),
    d_sae=FACTORIAL.d_sae,
    recipe=FACTORIAL.recipe.replace(lr=8e-3, threshold_lr=0.1),
)
PRESETS = {
    "study": STUDY,
    "without-momentum": STUDY.replace(recipe=STUDY.recipe.replace(betas=(0.0, 0.999))),
}


def _common(preset: State) -> dict[str, Any]:
    return {"d_sae": preset.d_sae, "activation": JumpReLU(LogThreshold(START))}


def staged(preset: State) -> list[Arm]:
    """The SAEs on which noise is measured: one a stage, of the batch estimate."""
    penalty = L0(middle(preset.coefficients))
    recipes = [preset.recipe.stretched(stage) for stage in preset.stages]
    if not recipes:
        return []
    return grid(JumpReLUSAE, penalty=penalty, kernel=KERNEL, recipe=recipes, **_common(preset))


def _cells(preset: State) -> Iterator[tuple[float, float, int, int]]:
    """Coefficient, rate, seed and data order of each arm of a line."""
    every = cells(preset.coefficients, preset.rates)
    swept = cells((middle(preset.coefficients),), preset.rates)
    for seed in preset.seeds:
        yield from ((*cell, seed, seed) for cell in every)
    for order in preset.orders:
        yield from ((*cell, seed, order) for seed in preset.seeds[:1] for cell in swept)


def arms(preset: State) -> list[Arm]:
    """The SAEs for noise, then every line over coefficients, rates, seeds and data orders."""
    recipe, common, made = preset.recipe.stretched(preset.share), _common(preset), staged(preset)
    for coefficient, rate, seed, order in _cells(preset):
        made += grid(
            JumpReLUSAE,
            penalty=L0(coefficient),
            kernel=list(lines(KERNEL).values()),
            recipe=recipe.replace(threshold_lr=rate, data_seed=order),
            seed=seed,
            **common,
        )
    return made


# -- what is measured on the trained SAEs ---------------------------------------------------------


def noise(finished: Finished) -> pd.DataFrame:
    """Rows of `gradient_noise` for each stage: columns arm and train_tokens, then its own."""
    preset = finished.preset
    assert isinstance(preset, State)
    kernels: dict[Kernel, tuple[int, ...]] = {KERNEL: preset.memories}
    kernels |= {Rectangle(width): (STEPS,) for width in preset.bandwidths}
    estimators = panel(kernels)
    there = set(finished.table.loc[finished.table["l0"].notna(), "arm"])
    found = []
    for arm in (arm for arm in staged(preset) if arm.key in there):
        rows = gradient_noise(
            finished.sae(arm.key),
            finished.cache,
            estimators,
            batch_size=arm.recipe.batch_size,
            block=preset.block,
        )
        rows.insert(0, "train_tokens", arm.recipe.steps * arm.recipe.batch_size)
        rows.insert(0, "arm", arm.key)
        found.append(rows)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _known(finished: Finished) -> pd.DataFrame:
    """The measured rows of `training`; none of a part without seeds."""
    table = finished.table
    assert isinstance(finished.preset, State)
    return trained(table) if finished.preset.seeds else table.iloc[:0]


def thresholds(finished: Finished) -> pd.DataFrame:
    """Of each arm of `training`: theta (median over latents), moved (share of thresholds), steps
    (to L0 = TARGET)."""
    found = []
    for arm in _known(finished)["arm"].drop_duplicates():
        theta = theta_of(finished, arm)
        steps = steps_to(finished.history(arm), TARGET)
        row = {"theta": float(np.median(theta)), "moved": moved(theta, START), "steps": steps}
        found.append({"arm": arm, **row})
    return pd.DataFrame(found)


def spreads(finished: Finished) -> pd.DataFrame:
    """Spread of thresholds over the data orders of a seed: columns line, threshold_lr, coefficient,
    seed, orders, latents (that fired in all of them) and spread."""
    rows = _known(finished)
    if rows.empty:
        return pd.DataFrame()
    rates = Results.read(finished.folder).frequencies.set_index("arm")["frequency"]
    found = []
    for key, part in rows.groupby(["line", "threshold_lr", "coefficient", "seed"], sort=False):
        if len(part) > 1:
            fired = np.min([rates[arm] for arm in part["arm"]], axis=0) > 0
            theta = np.array([theta_of(finished, arm) for arm in part["arm"]])
            found.append((*key, len(part), int(fired.sum()), spread(theta, fired)))
    columns = ["line", "threshold_lr", "coefficient", "seed", "orders", "latents", "spread"]
    return pd.DataFrame(found, columns=columns)


FURTHER = {"noise": noise, "thresholds": thresholds, "spread": spreads}


# -- figures and answer ---------------------------------------------------------------------------


def _training(results: Results) -> pd.DataFrame:
    """The rows of the parts that train."""
    table = results.table
    return table[table["part"].isin([TRAINING, LOWER])] if "part" in table else table


def answer(results: Results) -> str:
    """The verdict in words and numbers, of what has been run."""
    said = []
    if len(found := results.further.get("noise", pd.DataFrame())):
        said.append(_threshold_noise.described(found))
    if len(table := trained(_training(results))):
        said.append(_threshold_training.described(table, results.further))
        every = _training(results)
        said.append(_threshold_training.diverged(every.assign(line=line(every["kernel"]))))
    return "\n".join(said)


def contrasts(results: Results) -> pd.DataFrame:
    """The contrasts of each state and of exact jumps in training."""
    return _threshold_training.effects(trained(_training(results)))


CAPTIONS = {
    "noise_by_frequency": (
        "At frozen weights, by firing frequency of the latent: variance of a step and "
        "integrated over steps, over the batch estimate's; bias over slope."
    ),
    "noise_vs_bias": (
        "Late in training, means over latents; along a line eps is 0.005, 0.01, 0.02, 0.04."
    ),
    "relative_fvu_vs_l0": (
        "FVU of each state against that of the batch estimate (0), left straight-through, right "
        "both with exact jumps, at one learning rate of the thresholds. " + RELATIVE
    ),
    "effects": "Change of log FVU at matched L0 with each state, 95% t-intervals over seeds.",
    "theta_spread": (
        "Standard deviation of log theta over two data orders of one seed, median over "
        "latents that fired."
    ),
}


def figures(results: Results) -> dict[str, Figure]:
    """Noise by frequency, noise against bias, FVU against the batch estimate, effects, spread of
    thresholds."""
    drawn: dict[str, Figure] = {}
    if len(found := results.further.get("noise", pd.DataFrame())):
        drawn["noise_by_frequency"] = _threshold_noise.by_frequency(found)
        drawn["noise_vs_bias"] = _threshold_noise.against_bias(found)
    if len(table := trained(_training(results))):
        drawn["relative_fvu_vs_l0"] = _threshold_training.relative(table)
        if len(effects := _threshold_training.effects(table)):
            drawn["effects"] = _threshold_training.effects_drawn(effects)
    if len(orders := results.further.get("spread", pd.DataFrame())):
        drawn["theta_spread"] = _threshold_training.spread_drawn(orders)
    return drawn
