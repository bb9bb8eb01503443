"""The suites pass every built-in component and catch the faults they name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sae_bench.activations import (
    BatchTopK,
    JumpReLU,
    LogThreshold,
    RawThreshold,
    ReLU,
    TopK,
)
from sae_bench.component_checks import (
    ACTIVATION,
    DECODER,
    ESTIMATOR,
    KERNEL,
    PENALTY,
    SUITES,
    check_activation,
    check_decoder,
    check_estimator,
    check_kernel,
    check_penalty,
)
from sae_bench.components import Component
from sae_bench.decoders import Decoder, FreeRows, UnitRows
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
from sae_bench.kernels import Epanechnikov, Gaussian, Rectangle, Triangle
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
from sae_bench.suite import ComponentSuite
from tests import faulty as bad
from tests.near import EVERY

BUILT_IN: dict[ComponentSuite[Any], list[Any]] = {
    KERNEL: [Rectangle(0.1), Triangle(), Epanechnikov(0.5), Gaussian(2.0)],
    PENALTY: [
        NoPenalty(),
        L1(0.1),
        RIL1(0.1),
        L0(0.1),
        TargetL0(1.0, 3.0),
        TargetMeanL0(1.0, 3.0),
        Tanh(0.1, 2.0),
        QuadraticFrequency(0.1, 0.2),
    ],
    ESTIMATOR: [
        BatchKDE(Rectangle(0.1)),
        BatchKDE(Rectangle(0.1), to_input=True),
        MomentumKDE(Triangle(0.1), steps=4),
        MeanKDE(Gaussian(0.1), steps=4, coefficient=ExactJump()),
        WindowKDE(Rectangle(1e-3), steps=4),
        PersistentBandwidth(WindowKDE(Rectangle(0.1), steps=2), TargetCount()),
        *EVERY,
    ],
    ACTIVATION: [
        ReLU(),
        JumpReLU(LogThreshold(1e-3)),
        JumpReLU(LogThreshold(2.0)),
        JumpReLU(RawThreshold(0.1)),
        TopK(4),
        BatchTopK(4),
    ],
    DECODER: [UnitRows(), FreeRows(0.1)],
}
CASES = [
    pytest.param(check, id=f"{thing.label}-{name}")
    for suite, things in BUILT_IN.items()
    for thing in things
    for name, check in suite.named(thing)
]


@pytest.mark.parametrize("check", CASES)
def test_built_in_components_conform(check: Any) -> None:
    check()


# -- every fault is caught by the check that names it ---------------------------------------------

NARROW = RawThreshold(0.1)
FAULTS: list[tuple[ComponentSuite[Any], Component, str, str]] = [
    (KERNEL, bad.TwiceScaled(), "integrates_to_one", "integrates to 2.0"),
    (KERNEL, bad.TwiceScaled(), "states_its_moments", "roughness is stated as 1.0"),
    (KERNEL, bad.Lopsided(), "is_a_symmetric_density_within_its_support", "K(-u) differ"),
    (KERNEL, bad.Widened(), "is_elementwise", "got torch.float64"),
    (PENALTY, bad.Summed(0.1), "is_a_mean_over_the_batch", "average over the batch"),
    (PENALTY, bad.PerToken(0.1), "is_a_mean_over_the_batch", "without dimensions, got (32,)"),
    (PENALTY, bad.Rewarding(0.1), "charges_and_does_not_pay", "must not be negative"),
    (PENALTY, bad.Rewarding(0.1), "scales_with_the_activations", "give `units`"),
    (PENALTY, bad.Remembers(0.1), "is_a_mean_over_the_batch", "repeated"),
    (PENALTY, bad.WrongSlope(0.1), "states_its_slope", "`slope` is stated as 3 at"),
    (
        PENALTY,
        bad.WrongJump(0.1),
        "states_its_jump",
        "stated as 6.3 at 0.9, `value` has 0.9",
    ),
    (
        PENALTY,
        bad.Flat(0.1, 2.0),
        "states_its_step_curvature",
        "is stated as 0, `value` has 0.5",
    ),
    (PENALTY, bad.Unstepped(0.1), "has_a_finite_gradient", "set through_step = True"),
    (ESTIMATOR, bad.Motionless(Rectangle(0.1)), "moves_thresholds", "no threshold moved"),
    (
        ESTIMATOR,
        bad.Motionless(Rectangle(0.1)),
        "points_where_the_truth_points",
        "cosine of 0.00",
    ),
    (ESTIMATOR, bad.DropsItsState(), "gives_a_gradient_and_a_state", "'seen'], got []"),
    (
        ESTIMATOR,
        bad.WidensItsState(),
        "gives_a_gradient_and_a_state",
        "torch.float64)",
    ),
    (
        ESTIMATOR,
        bad.PlainState(),
        "gives_a_gradient_and_a_state",
        "must be a tensor, got 0",
    ),
    (
        ESTIMATOR,
        bad.OneNumber(),
        "gives_a_gradient_and_a_state",
        "a latent, (32,), got ()",
    ),
    (ESTIMATOR, bad.OnlyGradient(), "gives_a_gradient_and_a_state", "return (gradient, state)"),
    (ESTIMATOR, bad.Undefined(), "gives_a_gradient_and_a_state", "must be finite"),
    (
        ESTIMATOR,
        bad.Overwrites(),
        "changes_nothing_that_it_is_given",
        "changed state 'average'",
    ),
    (ESTIMATOR, bad.Rescales(), "changes_nothing_that_it_is_given", "changed weight in place"),
    (ESTIMATOR, bad.Uphill(), "points_where_the_truth_points", "check its sign"),
    (
        ESTIMATOR,
        bad.SumOverTokens(),
        "points_where_the_truth_points",
        "a mean over `batch.tokens`",
    ),
    (ESTIMATOR, bad.NearSighted(), "needs_no_samples_beyond_its_reach", "widen `reach`"),
    (
        ESTIMATOR,
        bad.OwnWidth(),
        "takes_the_bandwidth_that_it_is_given",
        "argument 'bandwidth'",
    ),
    (
        ESTIMATOR,
        bad.DeafToWidth(),
        "takes_the_bandwidth_that_it_is_given",
        "self.width(bandwidth)",
    ),
    (ESTIMATOR, bad.Random(), "gives_the_same_bits_again", "keep memory in the state"),
    (ESTIMATOR, bad.NeverCalled(), "is_what_backward_gives_where_it_says_so", "is never called"),
    (ACTIVATION, bad.Triple(), "gives_latents", "must return Latents(pre, f, step), got tuple"),
    (ACTIVATION, bad.Signed(), "gives_latents", "codes must not be negative"),
    (ACTIVATION, bad.Booleans(), "gives_latents", "step must have the type of pre"),
    (
        ACTIVATION,
        bad.Clashing(),
        "is_part_of_an_sae",
        "Clashing: the name 'b_enc' of its tensor",
    ),
    (ACTIVATION, bad.Unused(), "is_part_of_an_sae", "gain gets no gradient"),
    (ACTIVATION, bad.Counts(), "changes_nothing_but_in_observe", "count changed: move that"),
    (
        ACTIVATION,
        bad.BatchInEvaluation(4),
        "a_token_is_encoded_alone",
        "threshold in `infer`",
    ),
    (ACTIVATION, bad.Unfolded(NARROW), "folds_with_the_activations", "in `fold_`"),
    (ACTIVATION, bad.Creeps(NARROW), "projects_once_for_all", "twice changes raw_threshold"),
    (ACTIVATION, bad.Narrow(), "works_in_float64", "make tensors of the type of pre"),
    (
        ACTIVATION,
        bad.Misstated(NARROW),
        "is_on_above_its_threshold",
        "on where pre > `threshold`",
    ),
    (
        ACTIVATION,
        bad.Misstated(NARROW),
        "says_whether_it_trains_thresholds",
        "share one threshold",
    ),
    (
        ACTIVATION,
        bad.Undeclared(NARROW),
        "says_whether_it_trains_thresholds",
        "trains_threshold = True",
    ),
    (
        ACTIVATION,
        bad.Gradientless(NARROW),
        "objects_where_a_penalty_on_steps_has_no_gradient",
        "make them with `jump`",
    ),
    (ACTIVATION, bad.OtherL0(4), "fixes_its_l0_where_it_says_so", "gives an L0 of 10"),
    (DECODER, bad.Transposed(), "starts_with_rows_for_all_latents", "got (8, 24)"),
    (
        DECODER,
        bad.GlobalDraws(),
        "draws_from_the_generator",
        "that `initial` is given",
    ),
    (DECODER, bad.WrongStart(), "starts_within_its_constraint", "moves the initial rows"),
    (DECODER, bad.Shrinking(), "projects_in_place_and_once_for_all", "twice must equal once"),
    (DECODER, bad.MovesRows(), "takes_from_the_gradient_what_it_forbids", "not W_dec"),
    (
        DECODER,
        bad.TurnsRound(),
        "takes_from_the_gradient_what_it_forbids",
        "must be a projection",
    ),
]


@pytest.mark.parametrize(
    ("suite", "thing", "check", "message"),
    [pytest.param(*fault, id=f"{type(fault[1]).__name__}-{fault[2]}") for fault in FAULTS],
)
def test_a_fault_is_caught_by_the_check_that_names_it(
    suite: ComponentSuite[Any], thing: Component, check: str, message: str
) -> None:
    found = suite.failures(thing)
    assert check in found, found
    assert message in found[check]
    assert all(text and "\n" not in text for text in found.values())


def test_every_check_has_a_fault_that_it_catches() -> None:
    common = {"survives_a_record", "carries_its_coefficient"}
    for suite in SUITES:
        caught = {check for owner, _, check, _ in FAULTS if owner is suite}
        assert {check.__name__ for check in suite.checks} - common == caught
        assert all(check.__doc__ for check in suite.checks)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (check_activation, ReLU(), bad.Signed()),
        (check_penalty, L1(0.1), bad.Rewarding(0.1)),
        (check_kernel, Triangle(), bad.TwiceScaled()),
        (check_estimator, BatchKDE(), bad.Uphill()),
        (check_decoder, UnitRows(), bad.WrongStart()),
    ],
)
def test_the_doors(check: Callable[[object], None], right: Decoder, wrong: Component) -> None:
    check(right)
    with pytest.raises(AssertionError, match="failed"):
        check(wrong)
    for other in ("something else", type(right)):
        with pytest.raises(InputError, match="is no "):
            check(other)


@dataclass(frozen=True)
class Hoyer(Penalty):
    """No sum over codes: it defines neither `slope` nor `jump`, and conforms."""

    units: ClassVar = {"coefficient": 2}

    def value(self, latents: Any, W_dec: Any) -> Any:
        f = latents.f
        return (f.sum(1).square() / (f.square().sum(1) + 1e-12)).mean()


def test_a_penalty_that_is_no_sum_over_codes_conforms() -> None:
    assert PENALTY.failures(Hoyer(0.1)) == {}
