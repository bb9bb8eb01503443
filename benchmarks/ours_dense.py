"""This library's arms with dense steps alone: what early training costs, while many latents
fire."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from benchmarks import ours
from benchmarks.case import Case, Learner
from benchmarks.ours import Ours
from sae_bench.paths import Path


def densely(make: Callable[[Case, Tensor], Ours], case: Case, first: Tensor) -> Learner:
    """The arm, off the sparse path for good."""
    made = make(case, first)
    made.trainee.path = Path(possible=False)
    return made


ARMS: Mapping[str, Callable[[Case, Tensor], Learner]] = {
    name: partial(densely, make) for name, make in ours.ARMS.items()
}
