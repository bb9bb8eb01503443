"""The suites pass every built-in component and catch the faults they name."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sae_bench.component_checks import (
    ESTIMATOR,
    KERNEL,
    PENALTY,
    check_estimator,
    check_kernel,
    check_penalty,
)
from sae_bench.errors import InputError
from sae_bench.estimators import (
    BatchKDE,
    ExactJump,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    TargetCount,
    WindowKDE,
)
from sae_bench.kernels import Epanechnikov, Gaussian, Kernel, Rectangle, Triangle
from sae_bench.penalties import (
    L0,
    L1,
    RIL1,
    NoPenalty,
    Penalty,
    QuadraticFrequency,
    Tanh,
    TargetL0,
    TargetMeanL0,
)

KERNELS = [Rectangle(0.1), Triangle(), Epanechnikov(0.5), Gaussian(2.0)]
PENALTIES = [
    NoPenalty(),
    L1(0.1),
    RIL1(0.1),
    L0(0.1),
    TargetL0(1.0, 3.0),
    TargetMeanL0(1.0, 3.0),
    Tanh(0.1, 2.0),
    QuadraticFrequency(0.1, 0.2),
]
ESTIMATORS = [
    BatchKDE(Rectangle(0.1)),
    BatchKDE(Rectangle(0.1), to_input=True),
    BatchKDE(Rectangle(0.1), coefficient=ExactJump()),
    MomentumKDE(Triangle(0.1), steps=4),
    MeanKDE(Gaussian(0.1), steps=4, coefficient=ExactJump()),
    WindowKDE(Rectangle(0.1), steps=4),
    PersistentBandwidth(WindowKDE(Rectangle(0.1), steps=2), TargetCount()),
]
CASES = [
    pytest.param(check, id=f"{thing.label}-{name}")
    for suite, things in ((KERNEL, KERNELS), (PENALTY, PENALTIES), (ESTIMATOR, ESTIMATORS))
    for thing in things
    for name, check in suite.named(thing)  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("check", CASES)
def test_built_in_components_conform(check: Any) -> None:
    check()


@dataclass(frozen=True)
class TwiceScaled(Kernel):
    """Does not integrate to 1."""

    roughness, variance, half_mean, support = 1.0, 1 / 12, 1 / 8, 0.5

    def density(self, u: torch.Tensor) -> torch.Tensor:
        return 2.0 * (u.abs() < 0.5).to(u.dtype)


@dataclass(frozen=True)
class Summed(Penalty):
    """A sum over the batch, without units and without a slope."""

    def value(self, latents: Any, W_dec: Any) -> Any:
        return latents.f.sum()


@dataclass(frozen=True)
class Motionless(BatchKDE):
    """Never moves a threshold."""

    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        return torch.zeros_like(batch.present.theta), {}


def test_faults_are_named() -> None:
    assert KERNEL.failures(TwiceScaled()).keys() >= {"integrates_to_one", "states_its_moments"}
    assert PENALTY.failures(Summed(0.1)).keys() >= {
        "is_a_mean_over_the_batch",
        "scales_with_the_activations",
        "states_its_slope",
    }
    assert ESTIMATOR.failures(Motionless(Rectangle(0.1))).keys() == {"moves_thresholds"}
    for check, thing in (
        (check_kernel, TwiceScaled()),
        (check_penalty, Summed(0.1)),
        (check_estimator, Motionless(Rectangle(0.1))),
    ):
        with pytest.raises(AssertionError, match="failed"):
            check(thing)
        with pytest.raises(InputError, match="is no "):
            check("something else")
