"""Calibration: the coefficients that give wanted L0s at the end of a full run, from short pilot
runs in lockstep and the drift of L0 between pilot and full run."""

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from sae_bench.annotations import fit, shown, typed
from sae_bench.arm import Arm
from sae_bench.components import digest
from sae_bench.errors import InputError, a
from sae_bench.source import ActivationSource
from sae_bench.train import Trained, train

LADDER = (1 / 9, 1.0, 9.0)
"""Factors on the given coefficient in the first round of pilots."""

PILOT_ROUNDS = 3
"""Rounds of pilots; after the first only for L0s that no pilot came near."""

STEP = 30.0
"""A coefficient is extrapolated by at most this factor beyond those that were run."""

NEAR = 2.0
"""A pilot within this ratio of a wanted L0 is near: what it misses is measured with the drift."""

CLOSE = 1.03
"""A full run within this ratio of the wanted L0 gives the coefficient as it is."""

FLAT = 0.1
"""L0 counts as saturated where it falls by less than coefficient^-0.1."""


@dataclass(eq=False)
class Runs:
    """Runs that differ in their coefficient alone, and the L0 that each gave."""

    arm: Arm
    l0: dict[float, float] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """The prototype's own coefficient, where the search starts."""
        return self.arm.slots["penalty"].coefficient

    def at(self, coefficient: float) -> Arm:
        """The arm with another coefficient."""
        penalty = self.arm.slots["penalty"].replace(coefficient=coefficient)
        return replace(self.arm, slots={**self.arm.slots, "penalty": penalty})

    def add(self, trained: Trained) -> None:
        """Keeps the outcome of a run: mean L0 of the last tenth of its history."""
        if trained.reason is None:
            last = trained.history[-max(1, len(trained.history) // 10) :]
            l0 = float(np.mean([row["l0"] for row in last]))
            self.l0[trained.arm.slots["penalty"].coefficient] = max(l0, 1e-3)

    def closest(self, l0: float) -> float:
        """The coefficient whose run came closest to `l0`, by ratio."""
        return min(self.l0, key=lambda c: abs(math.log(self.l0[c] / l0)))

    def miss(self, l0: float) -> float:
        """Ratio (>= 1) between `l0` and the closest run's; infinite without runs."""
        if not self.l0:
            return math.inf
        return math.exp(abs(math.log(self.l0[self.closest(l0)] / l0)))

    def logs(self) -> tuple[np.ndarray, np.ndarray]:
        """log coefficient, rising, and log L0."""
        runs = sorted(self.l0.items())
        return np.log([c for c, _ in runs]), np.log([l0 for _, l0 in runs])


def _line(
    x: np.ndarray, points: np.ndarray, values: np.ndarray, below: float, above: float
) -> np.ndarray:
    """Piecewise linear through the points; beyond them with the given slopes."""
    left, right = np.minimum(x - points[0], 0), np.maximum(x - points[-1], 0)
    return np.interp(x, points, values) + below * left + above * right


@dataclass(eq=False)
class Search:
    """What is known of one cell: its pilots and its full runs."""

    pilots: Runs
    full: Runs

    def coefficient(self, l0: float) -> float:
        """The answer: the proposal, or the closest full run's coefficient if that came close or
        L0 is saturated."""
        stay = self.full.miss(l0) <= CLOSE or (self.full.l0 and self.is_flat(l0))
        return self.full.closest(l0) if stay else self.proposal(l0)

    def proposal(self, l0: float) -> float:
        """The coefficient whose full run should give `l0`, by log-log interpolation on the curve
        of the pilots plus the drift, or extrapolation from the curve's last two points."""
        log_c, log_l0 = self.curve()
        above = log_l0 - math.log(l0)
        inside = np.flatnonzero(above[:-1] * above[1:] <= 0)
        edge = 0 if above.max() < 0 else len(log_c) - 2
        left = int(inside[0]) if len(inside) else edge
        slope = min((above[left + 1] - above[left]) / (log_c[left + 1] - log_c[left]), -FLAT)
        found = log_c[left] - above[left] / slope
        low, high = log_c[0] - math.log(STEP), log_c[-1] + math.log(STEP)
        return float(f"{math.exp(np.clip(found, low, high)):.4g}")

    def is_flat(self, l0: float) -> bool:
        """Whether `l0` lies beyond all runs and L0 has stopped moving there: in the full runs, or
        in the pilots as long as there are not two of those."""
        log_c, log_l0 = (self.full if len(self.full.l0) > 1 else self.pilots).logs()
        if log_l0.min() <= math.log(l0) <= log_l0.max():
            return False
        end = 0 if math.log(l0) > log_l0.max() else -1
        return bool(abs((np.diff(log_l0) / np.diff(log_c))[end]) < FLAT)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Log coefficient, and expected log L0 of a full run, wherever anything was run: the
        pilots' line plus the drift, which is log L0_full - log L0_pilot where there are full runs,
        linear in log coefficient between them, and beyond them on along the chord from the first to
        the last. So the curve goes through every full run, with the pilots' shape elsewhere."""
        log_c, log_l0 = self.pilots.logs()
        if not self.full.l0:
            return log_c, log_l0
        full_c, full_l0 = self.full.logs()
        everywhere = np.union1d(log_c, full_c)
        slope = np.minimum(np.diff(log_l0) / np.diff(log_c), -FLAT)
        pilot = _line(everywhere, log_c, log_l0, slope[0], slope[-1])
        drift = full_l0 - pilot[np.isin(everywhere, full_c)]
        chord = (drift[-1] - drift[0]) / (full_c[-1] - full_c[0]) if len(drift) > 1 else 0.0
        return everywhere, pilot + _line(everywhere, full_c, drift, chord, chord)


@typed("arms", "source", "l0")
def calibrate(
    arms: Iterable[Arm],
    source: ActivationSource,
    l0: Sequence[float],
    *,
    share: float = 0.25,
    rounds: int = 3,
    tolerance: float = 1.1,
    device: str | torch.device | None = None,
) -> list[Arm]:
    """Each arm at each wanted L0 of its full run, its coefficient found by pilots and full runs.

    L0 goes on moving after a pilot ends, by a factor that depends on the coefficient, so pilots
    only say where to look. All cells are trained in lockstep: pilots of `share` of the recipe on a
    ladder of coefficients, extended to the wanted L0s; then, up to `rounds` times, full runs with
    the coefficients proposed by the pilots plus the drift measured so far, for those L0s that no
    full run is within `tolerance` of. A full run within 3% gives the coefficient; else it is
    interpolated. Arms that differ only in their seed are calibrated once, with the first seed. An
    activation or penalty that names its own L0 (TopK, target L0) is set to it without a run.

    Cost of a cell in full runs: `share` times (3 + at most 2 per wanted L0), and 1 to `rounds`,
    usually 2, per wanted L0.

    L0 is the mean of the last tenth of the training history; on the default model's activations
    held-out L0 is 2-5% higher. One line a cell and L0, on standard error, says what a full run
    measured, and whether the coefficient is that run's or predicted.

    Args:
        arms: prototypes; their coefficients are where the search starts.
        source: the activations that the arms will be trained on.
        l0: wanted values.
        share: of the recipe's tokens and warm-ups that a pilot takes.
        rounds: of full runs, at most; 0: pilots alone, which do not know the drift.
        tolerance: ratio between wanted and measured L0 of a full run that is good enough; beyond it
            a warning says so, and whether L0 saturates (a larger coefficient no longer lowers it).
        device: where to train.

    Raises:
        InputError: no arms, an L0 that no arm can have, an arm without meaning or with a
            coefficient of 0, a number out of range, a source that has no such batches; or a cell
            all of whose pilots failed.
    """
    arms = _prototypes(arms)
    l0 = _wanted(l0, arms)
    if not (0 < share <= 1 and rounds >= 0 and 1 <= tolerance < math.inf):
        raise InputError(
            "calibrate: share must be in (0, 1], rounds not negative and tolerance a number of at "
            f"least 1, got {share}, {rounds} and {tolerance}"
        )
    if not isinstance(source, ActivationSource):
        raise InputError(
            f"calibrate: source must be a source of activations, got {a(type(source).__name__)}; "
            "ActivationCache.from_tensor(x) makes one"
        )
    for arm in arms:
        source.batches(arm.recipe.batch_size, arm.recipe.data_seed)  # refuses what it can't give
    cells = {arm.key: digest({**arm.record(), "seed": 0}) for arm in arms}
    searches: dict[str, Search] = {}
    for arm in arms:
        if _direct(arm, l0[0]) is None:
            pilot = replace(arm, recipe=arm.recipe.stretched(share))
            searches.setdefault(cells[arm.key], Search(Runs(pilot), Runs(arm)))
    _pilot(list(searches.values()), l0, source, device)
    for _ in range(rounds):
        every = ((search, wanted) for search in searches.values() for wanted in l0)
        missed = [(s.full, s.proposal(v)) for s, v in every if s.full.miss(v) > tolerance]
        _train(missed, source, device)
    for search in searches.values():
        _report(search, l0, tolerance)

    def found(arm: Arm, wanted: float) -> Arm:
        search = searches[cells[arm.key]]
        return replace(arm, slots=search.full.at(search.coefficient(wanted)).slots)

    return [_direct(arm, wanted) or found(arm, wanted) for arm in arms for wanted in l0]


def _prototypes(arms: Any) -> list[Arm]:
    """The arms that can be calibrated."""
    if isinstance(arms, Arm) or not isinstance(arms, Iterable):
        raise InputError(f"calibrate: arms must be a list of arms, got {a(type(arms).__name__)}")
    arms = list(arms)
    if not arms:
        raise InputError("calibrate: no arms were given")
    for arm in arms:
        if not isinstance(arm, Arm):
            raise InputError(f"calibrate: arms must be Arm objects, got {a(type(arm).__name__)}")
        if arm.objection:
            raise InputError(f"calibrate: {arm.key}: {arm.objection}")
        if _direct(arm, 1.0) is None and not arm.slots["penalty"].coefficient:
            raise InputError(
                f"calibrate: {arm.key}: the coefficient is where the search starts, and must be "
                "above 0"
            )
    return arms


def _wanted(l0: Any, arms: Sequence[Arm]) -> list[float]:
    """The values of L0 that all arms can have."""
    if not isinstance(l0, Sequence) or isinstance(l0, str) or not l0:
        raise InputError(f"calibrate: l0 must be a list of positive numbers, got {shown(l0)}")
    wanted = [fit(value, float, "calibrate: l0") for value in l0]
    smallest = min(arms, key=lambda arm: arm.d_sae)
    for value in wanted:
        if not 0 < value <= smallest.d_sae:
            raise InputError(
                f"calibrate: an L0 must be above 0 and at most d_sae = {smallest.d_sae} of "
                f"{smallest.key}, got {value:g}"
            )
    return wanted


def _direct(arm: Arm, l0: float) -> Arm | None:
    """The arm at an L0 that its activation or penalty takes as a field, or None."""
    for slot in ("activation", "penalty"):
        changed = arm.slots[slot].at_l0(l0)
        if changed is not None:
            return replace(arm, slots={**arm.slots, slot: changed})
    return None


def _pilot(
    searches: Sequence[Search],
    l0: Sequence[float],
    source: ActivationSource,
    device: str | torch.device | None,
) -> None:
    """Fills the pilots of each cell, from a ladder to the neighbourhood of the wanted L0s."""
    ladder = [(s.pilots, s.pilots.start * rung) for s in searches for rung in LADDER]
    _train(ladder, source, device)
    for pilots in dict.fromkeys(pilots for pilots, _ in ladder):
        if len(pilots.l0) < 2:
            raise InputError(
                f"calibrate: the pilots of {pilots.arm.key} failed; start from another "
                f"coefficient than {pilots.start:g} or lower the learning rate"
            )
    for _ in range(PILOT_ROUNDS - 1):
        far = [(s.pilots, s.proposal(v)) for s in searches for v in l0 if s.pilots.miss(v) > NEAR]
        _train(far, source, device)


def _train(
    wanted: Iterable[tuple[Runs, float]],
    source: ActivationSource,
    device: str | torch.device | None,
) -> None:
    """Runs all of these coefficients that have not been run, in lockstep."""
    owners: dict[str, Runs] = {}
    arms: list[Arm] = []
    for runs, coefficient in dict.fromkeys(wanted):
        if coefficient not in runs.l0:
            arms.append(runs.at(coefficient))
            owners[arms[-1].key] = runs
    for trained in train(arms, source, device=device):
        owners[trained.arm.key].add(trained)


def _report(search: Search, l0: Sequence[float], tolerance: float) -> None:
    penalty = search.full.arm.slots["penalty"]
    name = f"{search.full.arm.name} {penalty.label_without('coefficient')}"
    for wanted in l0:
        coefficient, full = search.coefficient(wanted), search.full.l0
        said = "predicted from pilots, no full run measured"
        if coefficient in full:
            said = f"measured: a full run with it ended at L0 {full[coefficient]:.1f}"
        elif full:
            near = search.full.closest(wanted)
            said = f"predicted: the closest full run, with {near:.4g}, gave L0 {full[near]:.1f}"
        print(f"calibrated {name} for L0 {wanted:g}: {coefficient:.4g}, {said}", file=sys.stderr)
        if search.full.miss(wanted) > tolerance:
            flat = "; L0 has saturated there" if search.is_flat(wanted) else ""
            warnings.warn(
                f"{name}: no full run came within {tolerance:g}x of L0 {wanted:g}; {said}{flat}",
                stacklevel=3,
            )
