"""Bandwidths of each latent's own: their rules, their bounds, and the estimators inside."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.bandwidth import BandwidthRule, PersistentBandwidth, SpreadRule, TargetCount
from sae_bench.components import subclasses
from sae_bench.errors import InputError
from sae_bench.estimator import KernelEstimator, State
from sae_bench.estimators import BatchKDE, ExactJump, MeanKDE, MomentumKDE, WindowKDE
from sae_bench.kernels import Epanechnikov, Gaussian, Kernel, Rectangle, Triangle
from sae_bench.samples import Batch, Present, Samples
from tests.near import isolated, near

KERNELS = [cls for cls in subclasses(Kernel) if cls.__module__ == "sae_bench.kernels"]
THETA, N = 0.5, 400
by_name = {"ids": lambda value: getattr(value, "__name__", type(value).__name__)}


def batches(steps: int, spreads: Tensor) -> list[tuple[Samples, Present]]:
    """Pre-activations around the threshold, uniform: latent i has N / (2 spread_i) of them in a
    unit of pre."""
    generator = torch.Generator().manual_seed(11)
    draws = [
        torch.rand(N, len(spreads), generator=generator, dtype=torch.float64) for _ in range(steps)
    ]
    return [isolated(THETA + spreads * (2 * z - 1), THETA, 0.1, 1.2, 0.2) for z in draws]


def run(estimator: PersistentBandwidth, steps: list[tuple[Samples, Present]]) -> list[State]:
    """The state after each step; only what is within reach is handed over."""
    d_sae = len(steps[0][1].theta)
    state: State = {
        name: value.double() if value.is_floating_point() else value
        for name, value in estimator.init(d_sae).items()
    }
    states = []
    for samples, present in steps:
        given = near(samples, present, estimator.reach(state))
        _, state = estimator.estimate(state, Batch(given, present, N))
        states.append(state)
    return states


SPREADS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("kernel", [Rectangle, Triangle, Epanechnikov], **by_name)
def test_a_target_count_is_reached(kernel: type[Kernel]) -> None:
    """m samples a step with K > 0, whatever the density; the bandwidth is m / (density * width of
    the support)."""
    estimator = PersistentBandwidth(BatchKDE(kernel(0.1)), TargetCount(m=8.0, eta=0.05), decay=0.9)
    states = run(estimator, batches(300, SPREADS))
    found = torch.stack([state["bandwidth"] for state in states[150:]]).mean(0)
    expected = 8.0 / (N / (2 * SPREADS)) / (2 * kernel.support)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)
    counts = torch.stack([state["inside"] for state in states[150:]]).mean(0)
    torch.testing.assert_close(counts, torch.full_like(counts, 8.0), rtol=0.06, atol=0)


@pytest.mark.parametrize("rate", [1 / 3, 1 / 5])
@pytest.mark.parametrize("kernel", KERNELS, **by_name)
def test_the_spread_rule_is_its_formula(kernel: type[Kernel], rate: float) -> None:
    """eps = clip(k sigma n^-rate / sqrt(mu2)), sigma and n bias-corrected running averages over the
    samples within three standard deviations of the window, recomputed from all samples."""
    k, decay, start = 1.3 if rate < 0.3 else 2.2, 0.8, kernel.of_width(0.05).bandwidth
    estimator = PersistentBandwidth(
        BatchKDE(kernel(start)), SpreadRule(k, rate), low=0.5, high=3.0, decay=decay
    )
    steps = batches(12, SPREADS)
    states = run(estimator, steps)
    eps = torch.full_like(SPREADS, start)
    counts, squares = [], []
    for t, ((samples, _), state) in enumerate(zip(steps, states, strict=True)):
        distance = samples.pre.view(N, -1) - THETA
        close = distance.abs() < 3 * eps * math.sqrt(kernel.variance)
        counts.append(close.sum(0).double())
        squares.append((distance.square() * close).sum(0))
        weights = torch.tensor([decay ** (t - s) for s in range(t + 1)], dtype=torch.float64)
        weights /= weights.sum()
        n = weights @ torch.stack(counts)
        sigma = (weights @ torch.stack(squares) / n).sqrt()
        eps = (k * sigma * n.clamp(min=1) ** -rate / math.sqrt(kernel.variance)).clamp(
            0.5 * start, 3 * start
        )
        torch.testing.assert_close(state["bandwidth"], eps, rtol=1e-6, atol=0)
    assert len(set(eps.tolist())) >= 3  # and not all at a bound


@dataclass(frozen=True)
class NearInBandwidths(PersistentBandwidth):
    """The trap: "near" is three bandwidths, which is another width for each kernel."""

    @property
    def near(self) -> float:
        return 3.0


def test_equal_k_is_equal_width_across_kernels() -> None:
    """From equal widths, all kernels go through equal widths; the copy with the trap built in is
    seen to lead the rectangle to a window several times as wide as the Gaussian's."""
    widths: dict[Any, list[Tensor]] = {}
    for cls in (PersistentBandwidth, NearInBandwidths):
        for kernel in KERNELS:
            inner = BatchKDE(kernel.of_width(0.05))
            last = run(cls(inner, SpreadRule(k=1.5), decay=0.5), batches(60, SPREADS))[-1]
            widths.setdefault(cls, []).append(last["bandwidth"] * kernel.variance**0.5)
    for found in widths[PersistentBandwidth][1:]:
        torch.testing.assert_close(found, widths[PersistentBandwidth][0], rtol=1e-5, atol=0)
    rectangle, gaussian = (
        widths[NearInBandwidths][KERNELS.index(k)] for k in (Rectangle, Gaussian)
    )
    assert (rectangle > 3 * gaussian).all()


INNER: list[Callable[[Kernel], KernelEstimator]] = [
    lambda kernel: BatchKDE(kernel),
    lambda kernel: BatchKDE(kernel, coefficient=ExactJump()),
    lambda kernel: MomentumKDE(kernel, steps=3),
    lambda kernel: MeanKDE(kernel, steps=3),
    lambda kernel: WindowKDE(kernel, steps=3, slots=N, coefficient=ExactJump()),
]


@pytest.mark.parametrize("rule", [SpreadRule(), TargetCount()], **by_name)
@pytest.mark.parametrize("build", INNER)
def test_the_inner_estimator_works_at_this_steps_bandwidths(
    build: Callable[[Kernel], KernelEstimator], rule: BandwidthRule
) -> None:
    """The gradient is the inner one at the bandwidths left by the step before; only then does the
    rule move them."""
    inner = build(Triangle(0.1))
    outer = PersistentBandwidth(inner, rule)
    state: State = {
        name: v.double() if v.is_floating_point() else v
        for name, v in outer.init(4).items()
        if v.numel() > 1
    }
    state = {name: state.get(name, v) for name, v in outer.init(4).items()}
    mine: State = {
        name.removeprefix("inner_"): value
        for name, value in state.items()
        if name.startswith("inner_")
    }
    moved = 0
    for samples, present in batches(6, SPREADS):
        width = state["bandwidth"]
        given = near(samples, present, outer.reach(state))
        expected, mine = inner.estimate(mine, Batch(given, present, N), width)
        gradient, state = outer.estimate(state, Batch(given, present, N))
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
        moved += not torch.equal(state["bandwidth"], width)
    assert moved == 6
    assert outer.kernel == inner.kernel
    assert not outer.is_backward


def test_bandwidths_stay_within_bounds() -> None:
    """A silent latent keeps its bandwidth under one rule and gets the widest under the other, at
    most twice as wide a step; a crowded one gets the narrowest."""
    spreads = torch.tensor([1e-4, 1.0, 1e6], dtype=torch.float64)
    for rule, silent in ((SpreadRule(k=0.1), 0.1), (TargetCount(m=0.1), 0.4)):
        estimator = PersistentBandwidth(BatchKDE(Rectangle(0.1)), rule, low=0.25, high=4.0)
        steps = batches(40, spreads)
        previous = torch.full_like(spreads, 0.1)
        for state in run(estimator, steps):
            assert (state["bandwidth"] >= 0.025 * (1 - 1e-6)).all()
            assert (state["bandwidth"] <= 0.4 * (1 + 1e-6)).all()
            if isinstance(rule, TargetCount):
                assert (state["bandwidth"] <= 2 * previous * (1 + 1e-6)).all()
            previous = state["bandwidth"]
        assert previous[0].item() == pytest.approx(0.025)
        assert previous[2].item() == pytest.approx(silent)


def test_reach_covers_spread_kernel_and_guard() -> None:
    wide = torch.tensor([0.1, 0.3])
    for inner, factor in (
        (BatchKDE(Rectangle(0.1)), 3 / math.sqrt(12)),
        (BatchKDE(Gaussian(0.1)), 6.0),
        (WindowKDE(Rectangle(0.1), guard=2.0), 2.5),
    ):
        outer = PersistentBandwidth(inner)
        reach = outer.reach(outer.init(2) | {"bandwidth": wide})
        torch.testing.assert_close(reach, factor * wide)


def test_straight_through_to_the_input_is_the_inner_ones() -> None:
    for to_input in (False, True):
        assert PersistentBandwidth(BatchKDE(Rectangle(0.1), to_input=to_input)).to_input == to_input


INNERMOST = BatchKDE(Rectangle(0.1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PersistentBandwidth(INNERMOST, low=0.0), "PersistentBandwidth: 0 < low <= 1"),
        (lambda: PersistentBandwidth(INNERMOST, low=2.0), "PersistentBandwidth: 0 < low <= 1"),
        (lambda: PersistentBandwidth(INNERMOST, high=0.5), "PersistentBandwidth: 0 < low <= 1"),
        (lambda: PersistentBandwidth(INNERMOST, decay=1.0), "PersistentBandwidth: 0 < low <= 1"),
        (lambda: SpreadRule(k=0.0), "SpreadRule: k must be a positive number, got 0.0"),
        (lambda: SpreadRule(rate=-1.0), "SpreadRule: rate must be a positive number, got -1.0"),
        (lambda: TargetCount(m=math.nan), "TargetCount: m must be a positive number, got nan"),
        (lambda: TargetCount(eta=math.inf), "TargetCount: eta must be a positive number, got inf"),
    ],
)
def test_values_out_of_range_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        build()
