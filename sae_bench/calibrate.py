"""Calibration: the coefficients that give wanted L0s, found by short pilot runs in lockstep."""

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sae_bench.arm import Arm
from sae_bench.components import digest
from sae_bench.errors import InputError
from sae_bench.source import ActivationSource
from sae_bench.train import Trained, train

LADDER = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
"""Factors on the given coefficient in the first round."""

STEP = 30.0
"""A coefficient is extrapolated by at most this factor beyond those that were run."""

CLOSE = 1.03
"""A pilot within this ratio of the wanted L0 is not refined."""

FLAT = 0.1
"""L0 counts as saturated where it falls by less than coefficient^-0.1."""


@dataclass
class Search:
    """What is known of one cell: the coefficients that were run, and the L0 that each gave."""

    arm: Arm
    runs: dict[float, float] = field(default_factory=dict)

    @property
    def coefficient(self) -> float:
        """Where the search starts."""
        return self.arm.slots["penalty"].coefficient

    def at(self, coefficient: float) -> Arm:
        """The arm with another coefficient."""
        penalty = self.arm.slots["penalty"].replace(coefficient=coefficient)
        return replace(self.arm, slots={**self.arm.slots, "penalty": penalty})

    def add(self, trained: Trained) -> None:
        """Keeps the outcome of a pilot run: mean L0 of the last tenth of its history."""
        if trained.reason is None:
            last = trained.history[-max(1, len(trained.history) // 10) :]
            l0 = float(np.mean([row["l0"] for row in last]))
            self.runs[trained.arm.slots["penalty"].coefficient] = max(l0, 1e-3)

    def closest(self, l0: float) -> float:
        """The coefficient whose run came closest to `l0`, by ratio."""
        return min(self.runs, key=lambda c: abs(math.log(self.runs[c] / l0)))

    def miss(self, l0: float) -> float:
        """Ratio (>= 1) between `l0` and the closest run's."""
        return math.exp(abs(math.log(self.runs[self.closest(l0)] / l0)))

    def proposal(self, l0: float) -> float:
        """The coefficient for `l0` by log-log interpolation, or extrapolation from the last two."""
        log_c, log_l0 = self._curve()
        inside = np.flatnonzero((log_l0[:-1] - math.log(l0)) * (log_l0[1:] - math.log(l0)) <= 0)
        edge = 0 if l0 > math.exp(log_l0.max()) else len(log_c) - 2
        left = int(inside[0]) if len(inside) else edge
        rise = log_l0[left + 1] - log_l0[left]
        slope = min(rise / (log_c[left + 1] - log_c[left]), -FLAT)
        found = log_c[left] + (math.log(l0) - log_l0[left]) / slope
        low, high = log_c[0] - math.log(STEP), log_c[-1] + math.log(STEP)
        return float(f"{math.exp(np.clip(found, low, high)):.4g}")

    def is_flat(self, l0: float) -> bool:
        """Whether L0 has stopped moving at the end of the runs that lies towards `l0`."""
        log_c, log_l0 = self._curve()
        end = slice(0, 2) if l0 > math.exp(log_l0.max()) else slice(-2, None)
        slope = np.diff(log_l0[end]) / np.diff(log_c[end])
        return bool(abs(slope[0]) < FLAT)

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        runs = sorted(self.runs.items())
        return np.log([c for c, _ in runs]), np.log([l0 for _, l0 in runs])


def calibrate(
    arms: Iterable[Arm],
    source: ActivationSource,
    l0: Sequence[float],
    *,
    share: float = 0.25,
    rounds: int = 4,
    tolerance: float = 1.1,
    device: str | torch.device | None = None,
) -> list[Arm]:
    """Each arm at each wanted L0, its coefficient found by pilot runs of `share` of its recipe.

    The pilots of all cells are trained in lockstep: first a ladder of coefficients around the given
    one, then, `rounds` - 1 times, the coefficients that interpolation proposes. An arm gets the
    coefficient whose pilot came closest. Arms that differ only in their seed are calibrated once.
    An activation or penalty that names its own L0 (TopK, target L0) is set to it without a pilot.

    One line a cell and L0, on standard error, says how close the pilot came; L0 goes on falling in
    longer runs, so check it in the results.

    Args:
        arms: prototypes; their coefficients are where the search starts.
        source: the activations that the arms will be trained on.
        l0: wanted values.
        share: of the recipe's tokens and warm-ups that a pilot takes.
        rounds: of pilot runs.
        tolerance: ratio between wanted and reached L0 that is good enough; beyond it a warning
            says so, and whether L0 saturates (a larger coefficient no longer lowers it).
        device: where to train.

    Raises:
        InputError: no arms, an L0 that is not positive, an arm without meaning, or a cell all of
            whose pilots failed.
    """
    arms = list(arms)
    if not arms or not l0 or min(l0) <= 0:
        raise InputError(f"calibrate: arms and positive values of L0 are needed, got l0={l0}")
    for arm in arms:
        if arm.objection:
            raise InputError(f"calibrate: {arm.key}: {arm.objection}")
    cells = {arm.key: digest({**arm.record(), "seed": 0}) for arm in arms}
    searches = {
        cells[arm.key]: Search(_pilot(arm, share)) for arm in arms if _direct(arm, l0[0]) is None
    }
    for number in range(rounds):
        _run_round(searches.values(), l0, first=number == 0, source=source, device=device)
    found = []
    for arm in arms:
        for wanted in l0:
            direct = _direct(arm, wanted)
            if direct is None:
                search = searches[cells[arm.key]]
                penalty = search.at(search.closest(wanted)).slots["penalty"]
                direct = replace(arm, slots={**arm.slots, "penalty": penalty})
            found.append(direct)
    for search in searches.values():
        _report(search, l0, tolerance)
    return found


def _pilot(arm: Arm, share: float) -> Arm:
    return replace(arm, recipe=arm.recipe.shortened(share))


def _direct(arm: Arm, l0: float) -> Arm | None:
    """The arm at an L0 that its activation or penalty takes as a field, or None."""
    for slot in ("activation", "penalty"):
        changed = arm.slots[slot].at_l0(l0)
        if changed is not None:
            return replace(arm, slots={**arm.slots, slot: changed})
    return None


def _run_round(
    searches: Iterable[Search],
    l0: Sequence[float],
    *,
    first: bool,
    source: ActivationSource,
    device: str | torch.device | None,
) -> None:
    pilots: dict[str, Search] = {}
    runs: list[Arm] = []
    for search in searches:
        if first:
            wanted = [search.coefficient * factor for factor in LADDER]
        else:
            wanted = [search.proposal(value) for value in l0 if search.miss(value) > CLOSE]
        for coefficient in dict.fromkeys(wanted):
            if coefficient not in search.runs:
                runs.append(search.at(coefficient))
                pilots[runs[-1].key] = search
    if not runs:
        return
    for trained in train(runs, source, device=device):
        pilots[trained.arm.key].add(trained)
    for search in pilots.values():
        if len(search.runs) < 2:
            raise InputError(
                f"calibrate: the pilots of {search.arm.key} failed; start from another coefficient "
                f"than {search.coefficient:g} or lower the learning rate"
            )


def _report(search: Search, l0: Sequence[float], tolerance: float) -> None:
    name = f"{search.arm.name} {search.arm.slots['penalty'].label_without('coefficient')}"
    for wanted in l0:
        coefficient, miss = search.closest(wanted), search.miss(wanted)
        reached = search.runs[coefficient]
        print(
            f"calibrated {name}: coefficient {coefficient:.4g} gave L0 {reached:.1f} "
            f"(wanted {wanted:g})",
            file=sys.stderr,
        )
        if miss > tolerance:
            flat = "; L0 has saturated there" if search.is_flat(wanted) else ""
            warnings.warn(
                f"{name}: no pilot came within {tolerance:g}x of L0 {wanted:g}; "
                f"the closest gave {reached:.1f}{flat}",
                stacklevel=3,
            )
