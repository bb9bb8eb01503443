"""Values against loops; threshold gradients of a whole SAE against closed forms."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.activations import JumpReLU, Latents, LogThreshold, RawThreshold, ThresholdForm
from sae_bench.components import subclasses
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Kernel, Rectangle
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
from sae_bench.sae import SparseAutoencoder

D_IN, D_SAE, N = 4, 6, 50


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_latents() -> tuple[Latents, Tensor]:
    pre = torch.randn(N, D_SAE, generator=generator(), dtype=torch.float64)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator(1), dtype=torch.float64)
    step = (pre > 0.2).double()
    return Latents(pre, pre * step, step), W_dec


def by_loops(penalty: Penalty, latents: Latents, W_dec: Tensor) -> float:
    """The formulas of the docstrings, one token and one latent at a time."""
    f, on = latents.f.tolist(), latents.step.tolist()
    norms = [math.sqrt(sum(w * w for w in row)) for row in W_dec.tolist()]
    tokens, latent = range(N), range(D_SAE)
    l0 = [sum(on[a]) for a in tokens]
    match penalty:
        case NoPenalty():
            return 0.0
        case L1():
            return sum(f[a][i] for a in tokens for i in latent) / N
        case RIL1():
            return sum(f[a][i] * norms[i] for a in tokens for i in latent) / N
        case L0():
            return sum(l0) / N
        case TargetL0(target=t):
            return sum((count / t - 1) ** 2 for count in l0) / N
        case TargetMeanL0(target=t):
            return (sum(l0) / N / t - 1) ** 2
        case Tanh(c=c):
            return sum(math.tanh(c * f[a][i] * norms[i]) for a in tokens for i in latent) / N
        case QuadraticFrequency(w=w):
            rates = [sum(on[a][i] for a in tokens) / N for i in latent]
            return sum(p * (1 + p / w) for p in rates)
    raise AssertionError(f"no reference for {penalty.label}")


PENALTIES = [
    NoPenalty(),
    L1(0.3),
    RIL1(0.3),
    L0(0.3),
    TargetL0(0.3, target=2.5),
    TargetMeanL0(0.3, target=2.5),
    Tanh(0.3, c=1.5),
    QuadraticFrequency(0.3, w=0.2),
]


def test_no_penalty_is_left_out() -> None:
    ours = {cls for cls in subclasses(Penalty) if cls.__module__ == "sae_bench.penalties"}
    ours = {cls for cls in ours if not inspect.isabstract(cls)}
    assert {type(penalty) for penalty in PENALTIES} == ours


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_value_against_loops(penalty: Penalty) -> None:
    latents, W_dec = random_latents()
    expected = by_loops(penalty, latents, W_dec)
    assert penalty.value(latents, W_dec).item() == pytest.approx(expected, rel=1e-12)
    assert penalty(latents, W_dec).item() == pytest.approx(penalty.coefficient * expected)


def test_the_two_targets_differ_by_the_variance_of_l0() -> None:
    latents, W_dec = random_latents()
    t = 2.5
    spread = latents.step.sum(1).var(unbiased=False).item() / t**2
    token = TargetL0(1.0, target=t).value(latents, W_dec).item()
    mean = TargetMeanL0(1.0, target=t).value(latents, W_dec).item()
    assert token - mean == pytest.approx(spread)


# -- what estimators know of a penalty ------------------------------------------------------------


def switched(latents: Latents, a: int, i: int, f: float, step: float) -> Latents:
    """One latent of one token set to other values."""
    changed = Latents(*(tensor.clone() for tensor in latents))
    changed.f[a, i], changed.step[a, i] = f, step
    return changed


def second_order(penalty: Penalty) -> float:
    """N times the second derivative of the value in one step, of penalties on batch means: what
    estimators neglect, of order 1/N."""
    match penalty:
        case QuadraticFrequency(w=w):
            return 2 / (N * w)
        case TargetMeanL0(target=t):
            return 2 / (N * t**2)
    return 0.0


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_slope_and_step_slope_are_autograd_of_the_value(penalty: Penalty) -> None:
    latents, W_dec = random_latents()
    f, step = latents.f.requires_grad_(), latents.step.requires_grad_()
    value = penalty.value(Latents(latents.pre, f, step), W_dec.requires_grad_())
    slope, step_slope = (
        N * gradient
        for gradient in torch.autograd.grad(
            value.requires_grad_() if not value.requires_grad else value,
            (f, step),
            allow_unused=True,
            materialize_grads=True,
        )
    )
    norms = W_dec.detach().norm(dim=1)
    found = penalty.slope(f.detach(), norms)
    torch.testing.assert_close(found.expand_as(slope), slope)
    torch.testing.assert_close(penalty.step_slope(latents, W_dec), step_slope)
    assert bool(step_slope.any()) == penalty.through_step


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_jump_slope_and_curvature_are_differences_between_on_and_off(penalty: Penalty) -> None:
    """A token's penalty (N times the value), with one latent on at f = theta or off."""
    latents, W_dec = random_latents()
    norms = W_dec.norm(dim=1)
    theta = torch.linspace(0.1, 0.9, D_SAE, dtype=torch.float64)
    slope = penalty.step_slope(latents, W_dec)
    for a in range(0, N, 9):
        for i in range(D_SAE):
            code, on, off = (
                N * penalty.value(switched(latents, a, i, f, step), W_dec).item()
                for f, step in ((theta[i], 0.0), (0.0, 1.0), (0.0, 0.0))
            )
            assert penalty.jump(theta, norms)[i].item() == pytest.approx(code - off, abs=1e-10)
            alone = slope[a, i] - latents.step[a, i] * penalty.step_curvature
            found = (alone + penalty.step_curvature / 2).item()
            assert found == pytest.approx(on - off, abs=1e-10 + second_order(penalty) / 2 * 1.001)
            # the second difference, by a step that counts twice
            twice = N * penalty.value(switched(latents, a, i, 0.0, 2.0), W_dec).item()
            curvature = penalty.step_curvature + second_order(penalty)
            assert curvature == pytest.approx(twice - 2 * on + off, abs=1e-9)


# -- the threshold gradient of the whole loss ---------------------------------------------------


def jump_of(penalty: Penalty, sae: SparseAutoencoder, latents: Latents) -> Tensor:
    """What the penalty adds to the coefficient of the window for each token and latent, by hand:
    -theta times its derivative in f, minus its derivative in the step (both times N)."""
    theta, norms, lam = sae.threshold, sae.W_dec.norm(dim=1), penalty.coefficient
    l0 = latents.step.sum(1, keepdim=True)
    match penalty:
        case L1():
            return -lam * theta * torch.ones_like(norms)
        case RIL1():
            return -lam * theta * norms
        case L0():
            return -lam * torch.ones_like(theta)
        case TargetL0(target=t):
            return -2 * lam * (l0 / t - 1) / t
        case TargetMeanL0(target=t):
            return -2 * lam * (l0.mean() / t - 1) / t
        case Tanh(c=c):
            return -lam * theta * c * norms / torch.cosh(c * latents.f * norms).square()
        case QuadraticFrequency(w=w):
            return -lam * (1 + 2 * latents.step.mean(0) / w)
    raise AssertionError(f"no closed form for {penalty.label}")


def sae_of(penalty: Penalty, form: ThresholdForm, kernel: Kernel) -> SparseAutoencoder:
    """Rows that are not of unit norm, thresholds that differ."""
    sae = SparseAutoencoder(
        D_IN, D_SAE, activation=JumpReLU(form), penalty=penalty, kernel=kernel
    ).double()
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator(2), dtype=torch.float64)
            parameter.add_(0.1 * noise.abs())
    return sae


@pytest.mark.parametrize(
    "kernel",
    [cls for cls in subclasses(Kernel) if cls.__module__ == "sae_bench.kernels"],
    ids=lambda cls: cls.__name__,
)
@pytest.mark.parametrize("penalty", PENALTIES[1:], ids=lambda p: type(p).__name__)
def test_threshold_gradient_is_the_closed_form(penalty: Penalty, kernel: type[Kernel]) -> None:
    """dL/dtheta_i = 1/(N eps) sum_a (I_ai + J_ai) K(u_ai), with I = 2 theta d.(x - x_hat) from the
    reconstruction and J from the penalty."""
    sae = sae_of(penalty, RawThreshold(0.2), kernel(0.4))
    x = torch.randn(N, D_IN, generator=generator(3), dtype=torch.float64)
    loss = sae.loss(x)
    loss.total.backward()
    with torch.no_grad():
        theta, latents = sae.threshold, loss.latents
        influence = 2 * theta * ((x - loss.reconstruction) @ sae.W_dec.T)
        coefficient = influence + jump_of(penalty, sae, latents)
        window = sae.kernel.kernel.density((latents.pre - theta) / 0.4)
        expected = (coefficient * window).sum(0) / (N * 0.4)
    assert (expected.abs() > 1e-6).all()
    torch.testing.assert_close(sae.threshold_parameters[0].grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty", PENALTIES[1:], ids=lambda p: type(p).__name__)
def test_a_log_threshold_gets_theta_times_that(penalty: Penalty) -> None:
    x = torch.randn(N, D_IN, generator=generator(3), dtype=torch.float64)
    log = sae_of(penalty, LogThreshold(0.2), Rectangle(0.4))
    raw = sae_of(penalty, RawThreshold(0.2), Rectangle(0.4))
    with torch.no_grad():
        raw.threshold_parameters[0].copy_(log.threshold)
    for sae in (log, raw):
        sae.loss(x).total.backward()
    expected = log.threshold * raw.threshold_parameters[0].grad
    torch.testing.assert_close(log.threshold_parameters[0].grad, expected.detach())


def test_to_input_moves_the_same_mass_to_the_encoder_bias() -> None:
    """df/dpre and dH/dpre gain what df/dtheta and dH/dtheta have with the other sign, so the
    bias, which shifts pre, gains minus the threshold's gradient."""
    x = torch.randn(N, D_IN, generator=generator(3), dtype=torch.float64)
    grads = {}
    for to_input in (False, True):
        sae = sae_of(L0(0.3), RawThreshold(0.2), Rectangle(0.4))
        sae.kernel = BatchKDE(Rectangle(0.4), to_input=to_input)
        sae.loss(x).total.backward()
        grads[to_input] = (sae.b_enc.grad, sae.threshold_parameters[0].grad)
    torch.testing.assert_close(grads[True][1], grads[False][1])
    torch.testing.assert_close(grads[True][0] - grads[False][0], -grads[False][1])


def test_relu_with_l0_through_the_input() -> None:
    """dH/dpre = K / eps at 0 is all the gradient there is."""
    sae = SparseAutoencoder(
        D_IN, D_SAE, penalty=L0(0.3), kernel=BatchKDE(Rectangle(0.4), to_input=True)
    ).double()
    x = torch.randn(N, D_IN, generator=generator(3), dtype=torch.float64)
    loss = sae.loss(x)
    (found,) = torch.autograd.grad(loss.terms["sparsity"], sae.b_enc)
    expected = 0.3 / (N * 0.4) * (loss.latents.pre.abs() < 0.2).sum(0)
    torch.testing.assert_close(found, expected.double())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: L0(-1e-9), "L0: the coefficient must be a number >= 0, got -1e-09"),
        (lambda: L1(math.nan), "L1: the coefficient must be a number >= 0"),
        (lambda: Tanh(math.inf), "Tanh: the coefficient must be a number >= 0"),
        (lambda: TargetL0(1.0, target=0.0), "TargetL0: target must be a positive number, got 0.0"),
        (lambda: TargetMeanL0(1.0, target=-3.0), "TargetMeanL0: target must be a positive number"),
        (lambda: Tanh(1.0, c=0.0), "Tanh: c must be a positive number, got 0.0"),
        (lambda: QuadraticFrequency(1.0, w=0.0), "QuadraticFrequency: w must be a positive number"),
    ],
)
def test_values_out_of_range_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
