"""The window over past samples, against direct recomputation from all raw samples ever seen.

Each trap is built into a copy of the window below, and seen to fail the check that the window
passes."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sae_bench.errors import InputError
from sae_bench.estimator import Bandwidth, State
from sae_bench.estimators import BatchKDE, ExactJump, PersistentBandwidth, StraightThrough
from sae_bench.kernels import Epanechnikov, Gaussian, Kernel, Rectangle, Triangle
from sae_bench.penalties import L0, Penalty, Tanh, TargetL0
from sae_bench.samples import Batch, Coefficient, Present, Samples
from sae_bench.window import WindowKDE, shared
from tests.near import COEFFICIENTS, isolated, near

T, N, LATENTS, EPS, THETA = 4, 200, 5, 0.2, 0.5
by_name = {"ids": lambda value: getattr(value, "__name__", type(value).__name__)}


@dataclass
class Step:
    """One optimiser step: every sample of its batch, the state of the SAE, the bandwidths."""

    samples: Samples
    present: Present
    bandwidth: Tensor

    @property
    def moment(self) -> tuple[Present, Tensor]:
        return self.present, self.bandwidth


def history(
    steps: int,
    *,
    drift: float = 0.0,
    growth: float = 1.0,
    widening: Callable[[int], float] = lambda t: 1.0,
    penalty: Penalty = L0(0.3),
    tokens: int = N,
) -> list[Step]:
    """Thresholds drift by `drift` bandwidths a step (every other latent the other way), the
    penalty's coefficient grows by a factor, bandwidths of odd latents widen."""
    generator = torch.Generator().manual_seed(7)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    found = []
    for t in range(steps):
        z = torch.randn(tokens, LATENTS, generator=generator, dtype=torch.float64)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        samples, present = isolated(z, THETA, 0.3, 1.3, 0.4 * noise)
        samples = samples._replace(step_slope=samples.step_slope + 0.5 * noise.flatten().abs())
        theta = present.theta + drift * EPS * t * sign
        scale = 0.3 * growth**t
        bandwidth = torch.full((LATENTS,), EPS, dtype=torch.float64)
        bandwidth[1::2] *= widening(t)
        found.append(Step(samples, Present(theta, *present[1:3], penalty, scale), bandwidth))
    return found


def direct(steps: list[Step], kernel: Kernel, coefficient: Coefficient) -> Tensor:
    """From all tokens of the last T steps, each judged in the state of the last one, by the
    formulas: sum coefficient K(u) / (eps tokens)."""
    (theta, norms, curvature, penalty, scale), eps = steps[-1].moment
    total = torch.zeros_like(theta)
    for step in steps[-T:]:
        pre, e, slope = (column.view(-1, LATENTS) for column in step.samples[1:4])
        if isinstance(coefficient, ExactJump):
            gain = 2 * theta * e - theta**2 * curvature
            charge = slope + penalty.jump(theta, norms) + penalty.step_curvature / 2
        else:
            on = (pre > theta).double()
            gain = 2 * theta * (e - pre * on * curvature)
            charge = slope + theta * penalty.slope(pre * on, norms) + on * penalty.step_curvature
        total += ((gain - scale * charge) * kernel.density((pre - theta) / eps) / eps).sum(0)
    return total / sum(len(step.samples.pre) // LATENTS for step in steps[-T:])


def empty(window: WindowKDE, latents: int) -> State:
    """Before the first step, in double precision."""
    state = window.init(latents)
    return {name: v.double() if v.is_floating_point() else v for name, v in state.items()}


def run(window: WindowKDE, steps: list[Step]) -> tuple[list[Tensor], list[State]]:
    """Gradient and state after each step; like an SAE, hands over what is within reach only."""
    state = empty(window, LATENTS)
    gradients, states = [], []
    for step in steps:
        reach = window.reach(state, step.bandwidth)
        samples = near(step.samples, step.present, reach)
        tokens = len(step.samples.pre) // LATENTS
        gradient, state = window.estimate(
            state, Batch(samples, step.present, tokens), step.bandwidth
        )
        gradients.append(gradient)
        states.append(state)
    return gradients, states


def check(window: WindowKDE, steps: list[Step]) -> None:
    """At every step, equal to direct recomputation."""
    rtol = 1e-5 if isinstance(window.kernel, Gaussian) else 1e-10  # the Gaussian's reach is 5
    for t, found in enumerate(run(window, steps)[0]):
        expected = direct(steps[: t + 1], window.kernel, window.coefficient)
        assert expected.abs().max() > 0.03
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


def window_of(cls: type[WindowKDE], kernel: type[Kernel], coefficient: Coefficient) -> WindowKDE:
    return cls(kernel(EPS), steps=T, slots=N, guard=1.0, coefficient=coefficient)


def doubling(t: int) -> float:
    """Once, at the sixth step."""
    return 1.0 if t < 5 else 2.0


SCENARIOS = {
    "nothing moves": history(7),
    "theta moves by eps / 4 a step": history(7, drift=0.25),
    "lambda grows by half a step": history(7, growth=1.5),
    "eps of some latents doubles": history(7, widening=doubling),
    "per-token target": history(7, drift=0.25, growth=1.5, penalty=TargetL0(0.3, target=2.0)),
    "charged codes": history(7, drift=0.25, growth=1.5, penalty=Tanh(0.3, c=1.5)),
}


@pytest.mark.parametrize("coefficient", COEFFICIENTS, **by_name)
@pytest.mark.parametrize("kernel", [Rectangle, Triangle, Epanechnikov], **by_name)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_window_is_direct_recomputation(
    scenario: str, kernel: type[Kernel], coefficient: Coefficient
) -> None:
    check(window_of(WindowKDE, kernel, coefficient), SCENARIOS[scenario])


@pytest.mark.parametrize("coefficient", COEFFICIENTS, **by_name)
def test_a_gaussian_window_is_direct_recomputation(coefficient: Coefficient) -> None:
    """Its support ends nowhere: a wider guard keeps what the doubled bandwidth looks at."""
    for steps in SCENARIOS.values():
        check(window_of(WindowKDE, Gaussian, coefficient).replace(guard=6.0), steps)


def test_batches_of_different_sizes_count_by_their_tokens() -> None:
    steps = history(3, tokens=50) + history(3, tokens=200)
    check(window_of(WindowKDE, Triangle, ExactJump()), steps)


def by_latent(kept: Samples, values: Tensor, latents: int) -> Tensor:
    """The sum over what a window keeps of each latent."""
    sums = torch.zeros(latents, dtype=torch.float64)
    return sums.index_add(0, kept.latent, values.double())


def kept_in(window: WindowKDE, state: State) -> Samples:
    """What a window keeps."""
    return Samples.joined(window.window(state))


# -- the traps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Baked(Coefficient):
    """Reads back what was baked at capture."""

    def __call__(self, samples: Samples, present: Present) -> Tensor:
        return samples.projection


class BakesTheCoefficient(WindowKDE):
    """The trap: stores c instead of its parts."""

    def pull(self, samples: Samples, present: Present, width: Bandwidth) -> Tensor:
        baked = WindowKDE(self.kernel, coefficient=Baked())
        return baked.pull(samples, present, width)

    def estimate(
        self, state: State, batch: Batch, bandwidth: Bandwidth | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        samples = batch.samples
        now = self.coefficient(samples, batch.present.at(samples.latent))
        baked = batch._replace(samples=samples._replace(projection=now))
        return super().estimate(state, baked, bandwidth)


class DividesByKept(WindowKDE):
    """The trap: divides by samples kept, not by tokens offered."""

    def estimate(self, *given: object, **named: object) -> tuple[Tensor, dict[str, Tensor]]:
        gradient, state = super().estimate(*given, **named)  # type: ignore[arg-type]
        kept = kept_in(self, state)
        count = by_latent(kept, kept.weight > 0, len(gradient))
        return gradient * state["tokens"].sum() / count, state


class NoGuard(WindowKDE):
    """The trap: captures what the kernel sees now, nothing beside it."""

    def reach(self, state: State, bandwidth: Bandwidth | None = None) -> Bandwidth:
        return self.kernel.reach * self.width(bandwidth)


class IgnoresOverflow(WindowKDE):
    """The trap: samples beyond the slots are dropped without weights for the others."""

    def estimate(self, *given: object, **named: object) -> tuple[Tensor, dict[str, Tensor]]:
        gradient, state = super().estimate(*given, **named)  # type: ignore[arg-type]
        kept = kept_in(self, state)
        offered = by_latent(kept, kept.weight, len(gradient))
        return gradient * by_latent(kept, kept.weight > 0, len(gradient)) / offered, state


@pytest.mark.parametrize("coefficient", COEFFICIENTS, **by_name)
@pytest.mark.parametrize(
    ("trap", "betrayed_by"),
    [
        (BakesTheCoefficient, ["theta moves by eps / 4 a step", "lambda grows by half a step"]),
        (DividesByKept, list(SCENARIOS)),
        (NoGuard, ["theta moves by eps / 4 a step", "eps of some latents doubles"]),
    ],
    **by_name,
)
def test_a_copy_with_the_trap_built_in_is_seen_to_fail(
    trap: type[WindowKDE], betrayed_by: list[str], coefficient: Coefficient
) -> None:
    for scenario, steps in SCENARIOS.items():
        window = window_of(trap, Triangle, coefficient)
        if scenario in betrayed_by:
            with pytest.raises(AssertionError, match="not close"):
                check(window, steps)
        elif scenario == "nothing moves":
            check(window, steps)


# -- leaving the guard band -----------------------------------------------------------------------


def test_coverage_is_one_inside_the_guard_band() -> None:
    for kernel in (Rectangle, Triangle):
        window = window_of(WindowKDE, kernel, StraightThrough())
        for name in ("nothing moves", "theta moves by eps / 4 a step"):
            steps = SCENARIOS[name]
            for step, state in zip(steps, run(window, steps)[1], strict=True):
                coverage = window.coverage(state, *step.moment)
                torch.testing.assert_close(coverage, torch.ones_like(coverage))


@pytest.mark.parametrize(("move", "missed"), [(1.0, 0.0), (1.25, 0.25), (1.5, 0.5), (9.0, 1.0)])
def test_coverage_is_the_captured_share_of_the_support(move: float, missed: float) -> None:
    """Rectangle, guard 1: captured up to 1.5 bandwidths, looked at from move - 0.5 to move + 0.5;
    the newest of two steps is covered in any case."""
    steps = history(2, drift=move)
    window = window_of(WindowKDE, Rectangle, StraightThrough())
    coverage = window.coverage(run(window, steps)[1][-1], *steps[-1].moment)
    torch.testing.assert_close(coverage, torch.full_like(coverage, 1 - missed / 2))


def test_beyond_the_guard_band_coverage_falls_and_the_gradient_is_too_small() -> None:
    """A coefficient of one sign; coverage says by how much (the density is nearly even)."""
    steps = history(8, drift=0.8, penalty=L0(50.0), tokens=4_000)
    steps = [Step(s.samples, s.present._replace(scale=50.0), s.bandwidth) for s in steps]
    window = window_of(WindowKDE, Rectangle, ExactJump()).replace(slots=4_000)
    gradients, states = run(window, steps)
    coverage = window.coverage(states[-1], *steps[-1].moment)
    expected = direct(steps, window.kernel, window.coefficient)
    assert (coverage < 0.8).all()
    assert (coverage > 0.5).all()
    torch.testing.assert_close(gradients[-1] / expected, coverage, rtol=0.25, atol=0)
    assert (gradients[-1].abs() < 0.9 * expected.abs()).all()


# -- overflow -------------------------------------------------------------------------------------


def overflowing(replicates: int) -> tuple[Samples, Present, Tensor]:
    """60 near samples of one latent, each replicate in an order of its own; and their gradient."""
    generator = torch.Generator().manual_seed(3)
    z = THETA + EPS * (torch.rand(60, 1, generator=generator, dtype=torch.float64) - 0.5)
    order = torch.rand(60, replicates, generator=generator).argsort(0)
    samples, present = isolated(z[:, 0][order], THETA, 0.3)
    expected = BatchKDE(Triangle(EPS), coefficient=ExactJump()).estimate(
        {}, Batch(samples, present, 1000)
    )
    return samples, present, expected[0]


def test_overflow_is_unbiased() -> None:
    """60 samples for 16 slots: right on average over orders, wrong without the weights."""
    samples, present, expected = overflowing(4_000)
    found = {}
    for cls in (WindowKDE, IgnoresOverflow):
        window = cls(Triangle(EPS), steps=3, slots=16, coefficient=ExactJump())
        state = empty(window, 4_000)
        gradient, state = window.estimate(state, Batch(samples, present, 1000))
        kept = kept_in(window, state)
        assert (by_latent(kept, kept.weight > 0, 4_000) == 16).all()
        assert (by_latent(kept, kept.weight, 4_000) == 60).all()
        found[cls] = (gradient.mean() - expected.mean()).abs() / gradient.std() * 4_000**0.5
        assert gradient.std() > 0
    assert found[WindowKDE] < 4
    assert found[IgnoresOverflow] > 100


@pytest.mark.parametrize(
    ("slots", "kept"),
    [(1, [1, 1, 1, 1, 0]), (2, [1, 3, 3, 3, 0]), (6, [1, 4, 12, 13, 0]), (8, [1, 4, 12, 20, 0])],
)
def test_slots_are_shared(slots: int, kept: list[int]) -> None:
    """Rare latents keep all of their samples, frequent ones share what is left in equal parts."""
    counts = [1, 4, 12, 20, 0]
    latent = torch.arange(5).repeat_interleave(torch.tensor(counts))
    values = torch.ones(len(latent), dtype=torch.float64)
    found = shared(Samples(latent, *[values] * 4), 5, slots)
    assert torch.bincount(found.latent, minlength=5).tolist() == kept
    assert sum(kept) <= 5 * slots
    weights = torch.zeros(5, dtype=torch.float64).index_add(0, found.latent, found.weight)
    torch.testing.assert_close(weights, torch.tensor(counts, dtype=torch.float64))


def test_what_a_fuller_step_left_behind_does_not_count() -> None:
    """Places are used again by steps that have fewer samples."""
    steps = [*history(T), *history(T + 2, tokens=20)]
    check(window_of(WindowKDE, Triangle, ExactJump()), steps)


def test_slots_are_for_samples_within_the_guard_band_only() -> None:
    """Samples that are handed over for another purpose take no slot."""
    step = history(1)[0]
    window = window_of(WindowKDE, Triangle, ExactJump())
    state = empty(window, LATENTS)
    given = near(step.samples, step.present, window.reach(state))
    for samples in (given, step.samples):
        gradient, after = window.estimate(state, Batch(samples, step.present, N))
        torch.testing.assert_close(gradient, direct([step], window.kernel, ExactJump()))
        assert (kept_in(window, after).weight > 0).sum() == len(given.pre)


def test_bandwidths_of_its_own_reach_the_window() -> None:
    """Inside `PersistentBandwidth`, guard band and coverage follow each latent's bandwidth."""
    window = WindowKDE(Triangle(EPS), guard=2.0)
    outer = PersistentBandwidth(window)
    state = outer.init(3) | {"bandwidth": torch.tensor([EPS, 2 * EPS, 5 * EPS])}
    torch.testing.assert_close(outer.reach(state), 3 * state["bandwidth"])
    _, present = isolated(torch.zeros(1, 3), THETA, 0.3)
    nothing = Samples(torch.zeros(0, dtype=torch.int64), *torch.zeros(4, 0))
    _, after = outer.estimate(state, Batch(nothing, present, 10))
    torch.testing.assert_close(after["inner_half"][0], 3 * state["bandwidth"])


@pytest.mark.parametrize("change", [{"slots": 0}, {"guard": -0.1}], ids=str)
def test_values_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"^WindowKDE: slots must be at least 1 .* got "):
        WindowKDE(**change)  # type: ignore[arg-type]
