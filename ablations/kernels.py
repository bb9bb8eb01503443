"""Do the shape of the kernel and the bandwidth matter to JumpReLU's thresholds?

The paper (arXiv 2407.14435) compares four kernels, Fig. 17, at one bandwidth, and mentions a sweep
of the bandwidth that it does not show. Here, on JumpReLU + L0:

(i) `shapes`: rectangle, triangle, Epanechnikov and Gaussian, at equal eps (0.02) and at equal
standard deviation eps sqrt(mu2) of the window. At equal eps the Gaussian's window is sqrt(12) = 3.5
times as wide as the rectangle's.

(ii) `bandwidth`: the rectangle with eps = 0.02 times 10^(-1.5), ..., 10^1.5 in steps of 10^0.5,
straight-through and with exact jumps. The bias of straight-through coefficients is of first order
in eps, that of exact jumps of second; the noise of both falls as eps grows.

Stated before the run:
- Outcome: log FVU at L0 = 16, 24, 32, 48, 64, 96, those that all seeds of the two that are compared
  reach; monotone interpolation in log L0, nothing extrapolated: an eps whose curve has no place in
  common with that of 0.02 has no answer. Shapes are held against the rectangle of equal eps or
  equal deviation, bandwidths against 0.02, exact jumps against straight-through at equal eps.
- Something is better or worse if the 95% t-interval over paired seeds excludes 0. Intervals are not
  corrected for their number. Seeds draw weights and data order.
- Beside it (table `windows`): how far thresholds travelled, and how many samples of a batch lie in
  a latent's window, on held-out activations (`_windows`).
- Fairness: rates and the thresholds' start are those that were tuned for the rectangle with eps =
  0.02 (`ablations/factorial.py`): no shape has a tuning of its own, so a shape that loses at equal
  eps has lost at the rectangle's rates. In `bandwidth` each eps, straight-through and exact jump,
  has three learning rates of the thresholds, 0.03, 0.1 and 0.3, and the one that it is compared at
  is chosen for each seed by the other seeds, at equal L0 of the middle coefficient
  (`_threshold_training`); the learning rate of the weights (8e-3) and the start (0.04) are the same
  for all. Where no other rate lies inside the range of the base rate's curve, 0.1 remains.

Scale of `study`: SmolLM2-135M after layer 9, the activations of the factorial, 1,152 latents,
batches of 512, FVU alone. Shapes: 7 kernels, 4 coefficients, 3 seeds: 84 arms of 400k tokens, about
35 minutes on two cores. Bandwidth: 7 x 2 lines, 5 arms each (3 coefficients, 2 further rates), 3
seeds: 210 arms of 120k tokens, the budget of `ablations/kde_state.py`, about 30 minutes, more if
the widest windows, which hold nearly every sample, cost exact jumps much; half a second an arm for
`windows`. Estimated from arms of the factorial, not measured.
"""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ablations import _bandwidths, _kernel_shapes
from ablations._estimators import PULLS
from ablations._lines import TUNED
from ablations._threshold_training import cells
from ablations._windows import SHAPES, named, windows
from ablations.factorial import STUDY as FACTORIAL
from architectures import JumpReLUSAE
from sae_bench.ablation import Finished, Preset
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.arm import Arm
from sae_bench.estimators import BatchKDE
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
class Kernels(Preset):
    """A preset whose recipe is that of `shapes`.

    Args:
        kernels: of `shapes`; the first is the rectangle.
        coefficients: of L0, in `shapes`.
        bandwidths: of `bandwidth`, ascending; the middle one is what the others are held against.
        swept: coefficients of L0 in `bandwidth`, at the base rate; the middle one also at the
            others.
        rates: learning rates of the thresholds in `bandwidth`; the middle one is the base.
        share: of the recipe's tokens that the arms of `bandwidth` have.
        seeds: paired; each draws the weights and the order of the data.
        start: of the thresholds.
    """

    kernels: tuple[Kernel, ...] = (*EQUAL_EPS, *EQUAL_DEVIATION[1:])
    coefficients: tuple[float, ...] = (1.2e-4, 2.4e-4, 5e-4, 1.1e-3)
    bandwidths: tuple[float, ...] = (6.3e-4, 2e-3, 6.3e-3, 2e-2, 6.3e-2, 0.2, 0.63)
    swept: tuple[float, ...] = (1.6e-4, 4.5e-4, 1.3e-3)
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    share: float = 0.3
    seeds: tuple[int, ...] = (0, 1, 2)
    start: float = DEFAULT.start

    def parts(self) -> dict[str, Preset]:
        """Shapes, and bandwidths."""
        return {SHAPE: self.replace(bandwidths=()), BANDWIDTH: self.replace(kernels=())}


STUDY = Kernels(
    data=FACTORIAL.data.replace(lm_tokens=0),
    d_sae=FACTORIAL.d_sae,
    recipe=FACTORIAL.recipe.replace(lr=DEFAULT.lr, threshold_lr=DEFAULT.threshold_lr),
)
PRESETS = {"study": STUDY}


def arms(preset: Kernels) -> list[Arm]:
    """Every kernel over coefficients and seeds; every bandwidth, straight-through and with exact
    jumps, over coefficients, rates and seeds."""
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
    for width in preset.bandwidths:
        for pull in PULLS.values():
            for coefficient, rate in cells(preset.swept, preset.rates):
                estimator = BatchKDE(Rectangle(width), coefficient=pull.coefficient)
                made += trained(estimator, coefficient, short.replace(threshold_lr=rate))
    return made


def seen(finished: Finished) -> pd.DataFrame:
    """The table `windows`."""
    assert isinstance(finished.preset, Kernels)
    return windows(finished, arms(finished.preset))


FURTHER = {"windows": seen}


# -- figures and answer ---------------------------------------------------------------------------


def _part(results: Results, name: str) -> pd.DataFrame:
    """The measured rows of a part."""
    return named(results.table[results.table["part"] == name])


def answer(results: Results) -> str:
    """The verdict in words and numbers, of what has been run."""
    counted = results.further.get("windows", pd.DataFrame())
    said = []
    if len(table := _part(results, SHAPE)):
        said.append(_kernel_shapes.described(table, counted))
    if len(table := _part(results, BANDWIDTH)):
        said.append(_bandwidths.described(_bandwidths.lined(table), counted))
    said.append(
        "Not decided: rates tuned for each shape, other starts of the thresholds, Adam without "
        "momentum as in the paper, longer training, other widths and models."
    )
    return "\n".join(said)


def figures(results: Results) -> dict[str, Figure]:
    """Frontiers by shape; FVU, travel of thresholds and samples in windows against eps."""
    counted = results.further.get("windows", pd.DataFrame())
    drawn = {}
    if len(table := _part(results, SHAPE)):
        drawn["fvu_vs_l0"] = _kernel_shapes.frontiers(table)
    if len(table := _part(results, BANDWIDTH)):
        table = _bandwidths.lined(table)
        drawn["fvu_vs_eps"] = _bandwidths.fvu_drawn(table)
        if len(counted):
            drawn["travel_vs_eps"] = _bandwidths.travel_drawn(table, counted)
            drawn["samples_vs_eps"] = _bandwidths.counts_drawn(table, counted)
    return drawn
