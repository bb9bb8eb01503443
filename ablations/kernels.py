"""Do the shape of the kernel and the bandwidth matter to JumpReLU's thresholds?

The paper (arXiv 2407.14435) compares four kernels, Fig. 17, at one bandwidth, and mentions a sweep
of the bandwidth that it does not show. Here, on JumpReLU + L0:

(i) `shapes`: rectangle, triangle, Epanechnikov and Gaussian, at equal eps (0.02) and at equal
standard deviation eps sqrt(mu2) of the window. At equal eps the Gaussian's window is sqrt(12) = 3.5
times as wide as the rectangle's.

(ii) `bandwidth`: the rectangle with eps = 0.02 times 10^(-1.5), ..., 10^1.5 in steps of 10^0.5,
straight-through and with exact jumps. While eps is small beside theta, the bias of straight-through
coefficients is of first order in eps, that of exact jumps of second; the noise of both falls as eps
grows. Below theta/eps = 0.5 the window reaches past 0, where pre-activations are not rectified, and
the estimate is no longer one of a density at the threshold: at eps = 0.063 once thresholds have
fallen below 0.031, from 0.2 on (but where thresholds ran away upwards) throughout.

Stated before the run:
- Outcome: log FVU at L0 = 16, 24, 32, 48, 64, 96 (`shapes`, means over all six) and at 24, 32, 48
  (`bandwidth`: the same for all that reach them, as effects change with L0), beside it place by
  place; monotone interpolation in log L0, nothing extrapolated. Shapes are held against the
  rectangle of equal eps or equal deviation, bandwidths against 0.02, exact jumps against
  straight-through at equal eps.
- Something is better or worse if the 95% t-interval over paired seeds excludes 0 and the mean is
  beyond 0.5%; if all of the interval is within 0.5%, there is no difference. Interpolation errs by
  a few tenths of a percent, which intervals do not hold; they are not corrected for their number.
  Seeds draw weights and data order. A line and seed that lacks an arm is left out.
- Beside it (table `windows`): how far thresholds travelled, and how many samples of a batch lie in
  a latent's window, on held-out activations (`_windows`).
- Fairness: rates and the thresholds' start are those that were tuned for the rectangle with eps =
  0.02 (`ablations/factorial.py`): no shape has a tuning of its own, so a shape that loses at equal
  eps has lost at the rectangle's rates. In `bandwidth` each line has three learning rates of the
  thresholds, 0.01, 0.03 and 0.1, and the one that it is compared at is chosen for each seed by the
  other seeds, at equal L0 of its middle coefficient (`_threshold_training`); the gain of that rate
  at that L0 moves the whole curve. The learning rate of the weights (8e-3) and the start (0.04) are
  the same for all. Where no other rate lies inside the range of the base rate's curve, the base
  rate remains.
- Coefficients of the wide windows, and the base rate, were chosen from 24 arms of seed 0 (120k
  tokens; no table was kept), in which exact jumps at eps = 0.2 and 0.63 ran away (88 to 98% of
  latents dead, L0 below 4 at any coefficient), and straight-through at 0.63 stayed below L0 6: 0.2
  is run with exact jumps to show it with seeds, 0.63 straight-through alone; no answer at matched
  L0 is expected of either.

Seen after the run: at eps = 6.3e-4 few samples reach a threshold, so that L0 hangs on the rate as
much as on the coefficient (66 at rate 0.1, 20 at 0.01, at one coefficient). With exact jumps that
line chose 0.1, by a gain at L0 66, where its base rate is worst, and was moved by it at 24 to 48;
with straight-through coefficients the same arm lies at L0 66, too, just beyond the base rate's
curve, and two seeds took 0.01 by what it does at L0 19. Neither its "better" nor its "worse" at its
own rate says anything about the bandwidth. Other lines that are compared move by less than 1%,
mostly upwards. So the text goes by the base rate, 0.03, and a review added what the verdicts miss:
frequent and dead latents, and all rates against one curve at equal L0. The arms of `bandwidth` have
234 steps: up to eps 0.063 the median threshold stays within a factor of 3.3 of its start.

Scale of `study`: SmolLM2-135M after layer 9, the activations of the factorial, 1,152 latents,
batches of 512, FVU alone. Shapes: 7 kernels, 5 coefficients, 3 seeds: 105 arms of 400k tokens.
Bandwidth: 13 lines, 7 arms each (5 coefficients, 2 further rates), 3 seeds: 273 arms of 120k
tokens, the budget of `ablations/kde_state.py`. Each 34 minutes on two cores, measuring included.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations import _bandwidths, _kernel_shapes
from ablations._lines import TUNED
from ablations._relative import RELATIVE
from ablations._threshold_training import DEAD, FVU, SHARE, base_rate, cells, diverged
from ablations._windows import SHAPES, named, windows
from ablations.factorial import STUDY as FACTORIAL
from architectures import JumpReLUSAE
from sae_bench.ablation import Finished, Preset
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.arm import Arm
from sae_bench.components import Component
from sae_bench.estimator import Coefficient
from sae_bench.estimators import BatchKDE, ExactJump, StraightThrough
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.penalties import L0
from sae_bench.recipe import Recipe
from sae_bench.results import Results

(DEFAULT,) = TUNED["JumpReLU + L0 (theta)"]
REFERENCE = Rectangle(DEFAULT.bandwidth)
EQUAL_EPS = tuple(shape(REFERENCE.bandwidth) for shape in SHAPES.values())
EQUAL_DEVIATION = tuple(
    shape.of_width(REFERENCE.bandwidth * REFERENCE.variance**0.5) for shape in SHAPES.values()
)
SHAPE, BANDWIDTH = "shapes", "bandwidth"
"""The parts."""


@dataclass(frozen=True)
class Sweep(Component):
    """A line of `bandwidth`.

    Args:
        bandwidth: of the rectangle.
        coefficients: of L0, at the base rate; the middle one also at the other rates.
        pull: of the samples in the window.
    """

    bandwidth: float
    coefficients: tuple[float, ...] = (7.5e-5, 1.7e-4, 3.7e-4, 7.7e-4, 1.6e-3)
    pull: Coefficient = StraightThrough()

    @property
    def estimator(self) -> BatchKDE:
        """The batch estimate with this window."""
        return BatchKDE(Rectangle(self.bandwidth), coefficient=self.pull)


NARROW = (6.3e-4, 2e-3, 6.3e-3, REFERENCE.bandwidth)
"""Bandwidths at most half the thresholds' start, whose L0 hangs on the coefficient alike."""
WIDE = (1e-6, 8e-6, 3e-5, 1e-4, 2.5e-4)
SWEPT = (
    *(Sweep(eps) for eps in NARROW),
    Sweep(6.3e-2, (1.5e-5, 6e-5, 2e-4, 6e-4, 1.6e-3)),
    Sweep(0.2, WIDE),
    Sweep(0.63, WIDE),
    *(Sweep(eps, pull=ExactJump()) for eps in NARROW),
    Sweep(6.3e-2, (6e-5, 1.5e-4, 3e-4, 6e-4, 1.2e-3), ExactJump()),
    Sweep(0.2, WIDE, ExactJump()),
)


@dataclass(frozen=True)
class Kernels(Preset):
    """A preset whose recipe is that of `shapes`.

    Args:
        kernels: of `shapes`; the first is the rectangle.
        coefficients: of L0, in `shapes`.
        swept: lines of `bandwidth`.
        rates: learning rates of the thresholds in `bandwidth`; the middle one is the base.
        share: of the recipe's tokens that the arms of `bandwidth` have.
        seeds: paired; each draws the weights and the order of the data.
        start: of the thresholds.
    """

    kernels: tuple[Kernel, ...] = (*EQUAL_EPS, *EQUAL_DEVIATION[1:])
    coefficients: tuple[float, ...] = (7e-5, 1.5e-4, 3e-4, 6e-4, 1.15e-3)
    swept: tuple[Sweep, ...] = SWEPT
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    share: float = 0.3
    seeds: tuple[int, ...] = (0, 1, 2)
    start: float = DEFAULT.start

    def parts(self) -> dict[str, Preset]:
        """Shapes, and bandwidths."""
        return {SHAPE: self.replace(swept=()), BANDWIDTH: self.replace(kernels=())}


STUDY = Kernels(
    data=FACTORIAL.data.replace(lm_tokens=0),
    d_sae=FACTORIAL.d_sae,
    recipe=FACTORIAL.recipe.replace(lr=DEFAULT.lr, threshold_lr=DEFAULT.threshold_lr),
)
PRESETS = {"study": STUDY}


def arms(preset: Kernels) -> list[Arm]:
    """Every kernel over coefficients and seeds; every line of bandwidths over coefficients, rates
    and seeds."""
    activation = JumpReLU(LogThreshold(preset.start))

    def trained(estimator: BatchKDE, coefficient: float, recipe: Recipe) -> list[Arm]:
        slots = {"activation": activation, "penalty": L0(coefficient), "kernel": estimator}
        return [
            Arm(JumpReLUSAE, preset.d_sae, recipe.replace(data_seed=seed), seed, slots)
            for seed in preset.seeds
        ]

    made = []
    for kernel in preset.kernels:
        for coefficient in preset.coefficients:
            made += trained(BatchKDE(kernel), coefficient, preset.recipe)
    short = preset.recipe.stretched(preset.share)
    for sweep in preset.swept:
        for coefficient, rate in cells(sweep.coefficients, preset.rates):
            made += trained(sweep.estimator, coefficient, short.replace(threshold_lr=rate))
    return made


def seen(finished: Finished) -> pd.DataFrame:
    """The table `windows`."""
    assert isinstance(finished.preset, Kernels)
    return windows(finished, arms(finished.preset))


FURTHER = {"windows": seen}


# -- figures and answer ---------------------------------------------------------------------------


def _part(results: Results, name: str) -> pd.DataFrame:
    """The measured rows of a part, of those estimators and seeds that lack none at the base
    rate."""
    rows = named(results.table[results.table["part"] == name])
    if rows.empty:
        return rows
    at_base = np.isclose(rows["threshold_lr"], base_rate(rows))
    there = rows[at_base].groupby(["kernel", "seed"]).size()
    whole = there.index[there == there.max()]
    return rows[pd.MultiIndex.from_frame(rows[["kernel", "seed"]]).isin(whole)]


def _left_out(rows: pd.DataFrame, known: pd.DataFrame) -> list[str]:
    """Which kernels and seeds of a part are not compared, since arms failed or had no latent on."""
    there = set(zip(known["kernel"], known["seed"], strict=True)) if len(known) else set()
    pairs = dict.fromkeys(zip(rows["kernel"], rows["seed"], strict=True))
    lost = [f"{kernel}, seed {seed:g}" for kernel, seed in pairs if (kernel, seed) not in there]
    return [f"  Left out, since they lack arms: {'; '.join(lost)}."] if lost else []


def contrasts(results: Results) -> pd.DataFrame:
    """Every shape minus the rectangle; every bandwidth minus the reference, exact jumps minus
    straight-through: at each place of L0, and means over them. Rates of the middle coefficients are
    at the arms' own L0."""
    found = [pd.DataFrame()]
    if len(table := _part(results, SHAPE)):
        found += [_kernel_shapes.effects(table, outcome) for outcome in (FVU, SHARE)]
    if len(table := _part(results, BANDWIDTH)):
        lined = _bandwidths.lined(table)
        for effects in (_bandwidths.effects, _bandwidths.rate_effects):
            found += [effects(lined, outcome) for outcome in (FVU, SHARE, DEAD)]
    return pd.concat(found, ignore_index=True)


def answer(results: Results) -> str:
    """The verdict in words and numbers, of what has been run."""
    counted = results.further.get("windows", pd.DataFrame())
    said = []
    if len(table := _part(results, SHAPE)):
        said.append(_kernel_shapes.described(table, counted))
    if len(table := _part(results, BANDWIDTH)):
        said.append(_bandwidths.described(_bandwidths.lined(table), counted))
    for name, rows in results.table.groupby("part", sort=False):
        said.append(f"  {name}: {diverged(rows.assign(line=rows['kernel'])).strip()}")
        said += _left_out(rows, _part(results, str(name)))
    said.append(
        "Not decided: rates tuned for each shape, other starts of the thresholds, Adam without "
        "momentum as in the paper, longer training, SAEs of other widths, other models."
    )
    return "\n".join(said)


CAPTIONS = {
    "relative_fvu_vs_l0": (
        "FVU of each kernel against the rectangle's (0): left all have its eps, right its standard "
        "deviation. " + RELATIVE
    ),
    "bandwidths_relative_fvu_vs_l0": (
        "FVU of each eps against that of eps 0.02 (0), left straight-through, right both with "
        "exact jumps, at one rate of the thresholds. Bandwidths that have no range of L0 in common "
        "with it are left out. " + RELATIVE
    ),
    "at_l0_vs_eps": (
        "FVU, and the share of L0 in latents above 10%, at one L0 against eps: means over seeds, "
        "bars span them (effects are paired by seed: bars say little of them). Left and right: one "
        "rate of the thresholds. Middle: each line at its own; the leftmost point of exact jumps "
        "is an artefact, as their gain was measured at twice this L0. Lines that not all seeds "
        "bring to that L0 are left out."
    ),
    "thresholds_vs_eps": (
        "Where thresholds went (all start at one value), and how much of the windows lies below 0, "
        "at each line's middle coefficient: L0 differs, and lines that ran away are among them; "
        "dead latents are counted."
    ),
    "samples_vs_eps": (
        "Samples of a held-out batch in a latent's window, and share of windows with any; "
        "grey: the share if samples came independently. At each line's middle coefficient; dead "
        "latents are counted, and lines that ran away are among them."
    ),
}


def figures(results: Results) -> dict[str, Figure]:
    """FVU by L0 against the rectangle and the reference bandwidth; FVU, frequent latents,
    thresholds and samples in windows against eps."""
    counted = results.further.get("windows", pd.DataFrame())
    drawn = {}
    if len(table := _part(results, SHAPE)):
        drawn["relative_fvu_vs_l0"] = _kernel_shapes.relative(table)
    if len(table := _part(results, BANDWIDTH)):
        table = _bandwidths.lined(table)
        drawn["bandwidths_relative_fvu_vs_l0"] = _bandwidths.relative(table)
        drawn["at_l0_vs_eps"] = _bandwidths.at_l0_drawn(table)
        if len(counted):
            drawn["thresholds_vs_eps"] = _bandwidths.thresholds_drawn(table, counted)
            drawn["samples_vs_eps"] = _bandwidths.counts_drawn(table, counted)
    return drawn
