"""Estimators of the threshold gradient against the truth they estimate."""

import pytest
import torch
from scipy.stats import gaussian_kde, norm
from torch import Tensor

from sae_bench.activations import JumpReLU, RawThreshold
from sae_bench.components import subclasses
from sae_bench.errors import InputError
from sae_bench.estimator import State
from sae_bench.estimators import (
    BatchKDE,
    Estimator,
    ExactJump,
    MeanKDE,
    MomentumKDE,
    StraightThrough,
    WindowKDE,
)
from sae_bench.kernels import Gaussian, Kernel, Rectangle
from sae_bench.penalties import L0, NoPenalty, Penalty
from sae_bench.sae import SparseAutoencoder
from sae_bench.samples import Batch, Coefficient
from tests.near import (
    COEFFICIENTS,
    inputs,
    isolated,
    near,
    normal_quantiles,
    sae_of,
    threshold_gradient,
)
from tests.sae_bench.test_penalties import PENALTIES

KERNELS = [cls for cls in subclasses(Kernel) if cls.__module__ == "sae_bench.kernels"]
by_name = {"ids": lambda value: getattr(value, "__name__", type(value).__name__)}


# -- one step is the paper's gradient -------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, **by_name)
@pytest.mark.parametrize("penalty", PENALTIES[1:], **by_name)
def test_one_step_of_each_is_autograd(penalty: Penalty, kernel: type[Kernel]) -> None:
    """With straight-through coefficients; the Gaussian is looked at within 5 bandwidths."""
    x, around = inputs(50), kernel(0.4)
    expected = threshold_gradient(sae_of(penalty, around), x, 0.7)
    assert expected.abs().max() > 1e-3
    for estimator in (
        MomentumKDE(around, steps=5),
        MeanKDE(around, steps=5),
        WindowKDE(around, steps=5, slots=50),
    ):
        found = threshold_gradient(sae_of(penalty, estimator), x, 0.7)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("coefficient", COEFFICIENTS, **by_name)
def test_at_frozen_weights_a_window_is_one_large_batch(coefficient: Coefficient) -> None:
    """For losses that are sums over tokens; so is the mean of gradients."""
    batches = [inputs(50, seed) for seed in range(4)]
    for penalty in (p for p in PENALTIES if "Mean" not in p.label and "Quad" not in p.label):
        around = Rectangle(0.4)
        large = sae_of(penalty, BatchKDE(around, coefficient=coefficient))
        expected = threshold_gradient(large, torch.cat(batches))
        for cls in (MeanKDE, WindowKDE):
            more = {"slots": 50} if cls is WindowKDE else {}
            estimator = cls(around, steps=4, coefficient=coefficient, **more)
            sae = sae_of(penalty, estimator)
            found = [threshold_gradient(sae, x) for x in batches][-1]
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


# -- the density is a density ---------------------------------------------------------------------


def test_the_density_is_that_of_scipy() -> None:
    """The threshold gradient of lambda * mean L0 is -lambda times a kernel density estimate of the
    pre-activations at the threshold."""
    sae, x = sae_of(L0(0.3), Gaussian(0.25)), inputs(60)
    latents = sae.latents(x)
    (found,) = torch.autograd.grad(sae.penalty(latents, sae.W_dec), sae.threshold_parameters)
    pre, theta = latents.pre.detach().numpy(), sae.threshold.detach().numpy()
    for i in range(sae.d_sae):
        factor = 0.25 / pre[:, i].std(ddof=1)
        density = gaussian_kde(pre[:, i], bw_method=factor)(theta[i]).item()
        assert found[i].item() == pytest.approx(-0.3 * density, rel=1e-9)


# -- the truth: one latent, z normal, loss known in closed form -----------------------------------

MEAN, DEVIATION, THETA, CHARGE = 0.3, 0.9, 0.5, 0.08
NORMAL = norm(MEAN, DEVIATION)


def lone_sae(estimator: Estimator, charge: float = CHARGE, bias: float = 0.0) -> SparseAutoencoder:
    """x -> pre = x + bias -> x_hat = f: one input, one latent."""
    activation = JumpReLU(RawThreshold(THETA))
    sae = SparseAutoencoder(
        1, 1, activation=activation, penalty=L0(charge), kernel=estimator
    ).double()
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(1.0)
        sae.b_enc.fill_(bias)
        sae.threshold_parameters[0].fill_(THETA)
    return sae


def finite_difference(sae: SparseAutoencoder, parameter: Tensor, x: Tensor, h: float) -> float:
    """Central difference of the mean loss in a parameter."""
    losses = []
    with torch.no_grad():
        for shift in (h, -h):
            parameter += shift
            losses.append(sae.loss(x).total.item())
            parameter -= shift
    return (losses[0] - losses[1]) / (2 * h)


def first_order(kernel: type[Kernel]) -> float:
    """Bias of straight-through coefficients for eps = ||d|| = 1: -2 theta m1 (p + theta p')."""
    p = NORMAL.pdf(THETA)
    derivative = -p * (THETA - MEAN) / DEVIATION**2
    return -2 * THETA * kernel.half_mean * (p + THETA * derivative)


def test_the_estimators_approach_the_finite_difference_in_theta() -> None:
    """dE[L]/dtheta = p(theta) (theta^2 - lambda) for a latent alone: the closed form, a difference
    of the loss of the whole SAE, and what each estimator leaves in the parameter's gradient."""
    x = normal_quantiles(200_000, MEAN, DEVIATION)[:, None]
    truth = NORMAL.pdf(THETA) * (THETA**2 - CHARGE)
    sae = lone_sae(BatchKDE())
    difference = finite_difference(sae, sae.threshold_parameters[0], x, 0.01)
    assert difference == pytest.approx(truth, rel=2e-3)
    for kernel in KERNELS:
        found = [
            threshold_gradient(lone_sae(BatchKDE(kernel(0.02), coefficient=c)), x).item()
            for c in COEFFICIENTS
        ]
        first = 0.02 * first_order(kernel)
        assert found[0] - first == pytest.approx(truth, rel=0.01)
        assert found[1] == pytest.approx(truth, rel=0.01)
        assert abs(first) > 0.01 * truth  # the straight-through bias is more than the tolerance


OFFSET, D = 0.15, 1.6


def estimates(coefficient: Coefficient, kernels: list[Kernel]) -> list[float]:
    """One latent with ||d||^2 = D and e = D z + OFFSET."""
    z = normal_quantiles(1_000_000, MEAN, DEVIATION)[:, None]
    samples, present = isolated(z, THETA, CHARGE, D, OFFSET)
    found = []
    for kernel in kernels:
        estimator = BatchKDE(kernel, coefficient=coefficient)
        nearby = near(samples, present, estimator.reach({}))
        found.append(estimator.estimate({}, Batch(nearby, present, len(z)))[0].item())
    return found


def jump(z: float) -> float:
    """J(z): minus the loss difference between on and off, with the latent at theta."""
    return 2 * THETA * (D * z + OFFSET) - THETA**2 * D - CHARGE


TRUTH = NORMAL.pdf(THETA) * jump(THETA)


@pytest.mark.parametrize("kernel", KERNELS, **by_name)
def test_straight_through_has_a_bias_of_first_order(kernel: type[Kernel]) -> None:
    """-2 theta eps ||d||^2 m1 (p + theta p'), the next order extrapolated away."""
    wider = kernel.of_width(0.06)
    eps = wider.bandwidth
    wide, narrow = estimates(StraightThrough(), [wider, kernel(eps / 2)])
    bias = 2 * (narrow - TRUTH) / (eps / 2) - (wide - TRUTH) / eps
    assert bias == pytest.approx(D * first_order(kernel), rel=0.02)


@pytest.mark.parametrize("kernel", KERNELS, **by_name)
def test_exact_jump_has_a_bias_of_second_order(kernel: type[Kernel]) -> None:
    """eps^2 mu2 / 2 times the second derivative of p J, the next order extrapolated away; no trace
    of the first order."""
    wider = kernel.of_width(0.1)
    eps = wider.bandwidth
    wide, narrow = estimates(ExactJump(), [wider, kernel(eps / 2)])
    bias = (4 * (narrow - TRUTH) / (eps / 2) ** 2 - (wide - TRUTH) / eps**2) / 3
    h = 1e-3
    around = [NORMAL.pdf(THETA + k * h) * jump(THETA + k * h) for k in (-1, 0, 1)]
    curvature = (around[0] - 2 * around[1] + around[2]) / h**2
    assert bias == pytest.approx(kernel.variance / 2 * curvature, rel=0.03)


@pytest.mark.parametrize("coefficient", COEFFICIENTS, **by_name)
@pytest.mark.parametrize("kernel", KERNELS, **by_name)
def test_the_variance_is_the_stated_one(kernel: type[Kernel], coefficient: Coefficient) -> None:
    """p E[coefficient^2 | pre = theta] R / (N eps), less the squared mean over N, over 4,000
    independent latents; with interference of standard deviation 0.6."""
    generator = torch.Generator().manual_seed(1)
    tokens, eps, noise = 400, kernel.of_width(0.03).bandwidth, 0.6
    z = torch.randn(tokens, 4_000, generator=generator, dtype=torch.float64) * DEVIATION + MEAN
    interference = noise * torch.randn(z.shape, generator=generator, dtype=z.dtype)
    samples, present = isolated(z, THETA, CHARGE, D, interference)
    estimator = BatchKDE(kernel(eps), coefficient=coefficient)
    nearby = near(samples, present, estimator.reach({}))
    found = estimator.estimate({}, Batch(nearby, present, tokens))[0].var().item()
    spread = (2 * THETA * noise) ** 2
    if coefficient == ExactJump():
        square = (THETA**2 * D - CHARGE) ** 2 + spread
    else:  # a fair coin: off, or on with the code's own part taken away
        square = ((2 * THETA**2 * D - CHARGE) ** 2 + CHARGE**2) / 2 + spread
    p, mean = NORMAL.pdf(THETA), NORMAL.pdf(THETA) * (THETA**2 * D - CHARGE)
    expected = p * square * kernel.roughness / (tokens * eps) - mean**2 / tokens
    assert found == pytest.approx(expected, rel=0.1)


def test_exact_jump_has_less_variance() -> None:
    """In the whole SAE: the coin flip is gone."""
    variances = []
    for coefficient in COEFFICIENTS:
        estimator = BatchKDE(Rectangle(0.1), coefficient=coefficient)
        gradients = []
        for seed in range(200):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(200, 1, generator=generator, dtype=torch.float64)
            sae = lone_sae(estimator, charge=THETA**2)
            gradients.append(threshold_gradient(sae, x * DEVIATION + MEAN))
        variances.append(torch.stack(gradients).var().item())
    assert variances[1] < 0.02 * variances[0]


def test_to_input_is_the_finite_difference_in_the_bias() -> None:
    """E[L] of a latent alone has the derivative 2 b P(on) + p (lambda + 2 theta b - theta^2) in its
    encoder bias b, p the density of pre at theta. Straight-through to the input finds it as eps
    -> 0; without it the second term is missing; with the penalty's half alone the sign is wrong."""
    bias, x = 0.02, normal_quantiles(400_000, MEAN, DEVIATION)[:, None]
    sae = lone_sae(BatchKDE(), bias=bias)
    p, on = NORMAL.pdf(THETA - bias), NORMAL.sf(THETA - bias)
    truth = 2 * bias * on + p * (CHARGE + 2 * THETA * bias - THETA**2)
    assert finite_difference(sae, sae.b_enc, x, 0.01) == pytest.approx(truth, rel=2e-3)
    for kernel in KERNELS:
        found = []
        for width in (0.04, 0.02):
            lone = lone_sae(BatchKDE(kernel.of_width(width), to_input=True), bias=bias)
            lone.loss(x).total.backward()
            found.append(lone.b_enc.grad.item())
        assert 2 * found[1] - found[0] == pytest.approx(truth, rel=5e-3)
    neither = lone_gradient(sae, x, "reconstruction") + lone_gradient(sae, x, "sparsity")
    assert neither == pytest.approx(2 * bias * on, rel=1e-3)
    through = lone_sae(BatchKDE(Rectangle(0.1), to_input=True), bias=bias)
    half = lone_gradient(sae, x, "reconstruction") + lone_gradient(through, x, "sparsity")
    assert truth < -0.04
    assert half > 0.04


def lone_gradient(sae: SparseAutoencoder, x: Tensor, term: str) -> float:
    """The gradient of one term of the loss in the encoder bias; 0 where no path leads there."""
    (found,) = torch.autograd.grad(
        sae.loss(x).terms[term], sae.b_enc, allow_unused=True, materialize_grads=True
    )
    return found.item()


# -- memory over steps ----------------------------------------------------------------------------


def bits(state: State) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.items()}


def gradients_of(estimator: Estimator, batches: list[Tensor]) -> list[Tensor]:
    """Step by step, theta and penalty fixed; each batch (tokens, latents) of z."""
    state, found = estimator.init(batches[0].shape[1]), []
    for z in batches:
        samples, present = isolated(z, THETA, CHARGE, interference=0.3)
        before = bits(state)
        nearby = near(samples, present, estimator.reach(state))
        following = estimator.estimate(state, Batch(nearby, present, len(z)))
        assert bits(state) == before  # pure
        found.append(following[0])
        state = following[1]
    return found


def draws(steps: int, tokens: int, latents: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(tokens, latents, generator=generator) for _ in range(steps)]


def test_momentum_is_a_bias_corrected_average() -> None:
    batches = draws(6, 50, 3)
    plain = gradients_of(BatchKDE(Rectangle(0.3)), batches)
    decay, found = 3 / 5, gradients_of(MomentumKDE(Rectangle(0.3), steps=4), batches)
    for t in range(6):
        weights = torch.tensor([decay ** (t - s) for s in range(t + 1)])
        expected = (weights[:, None] * torch.stack(plain[: t + 1])).sum(0) / weights.sum()
        torch.testing.assert_close(found[t], expected)


def test_the_same_batch_again_moves_no_memory() -> None:
    """From the very first step: the bias correction, and empty slots that count for nothing."""
    (z,) = draws(1, 50, 3)
    expected = gradients_of(BatchKDE(Rectangle(0.3)), [z])[0]
    for cls in (MomentumKDE, MeanKDE, WindowKDE):
        estimator = cls(Rectangle(0.3), steps=4)
        for found in gradients_of(estimator, [z] * 6):
            torch.testing.assert_close(found, expected)


def test_the_mean_is_over_the_last_steps() -> None:
    batches = draws(9, 50, 3)
    plain = torch.stack(gradients_of(BatchKDE(Rectangle(0.3)), batches))
    for t, found in enumerate(gradients_of(MeanKDE(Rectangle(0.3), steps=4), batches)):
        torch.testing.assert_close(found, plain[max(0, t - 3) : t + 1].mean(0))


def test_momentum_has_the_variance_of_a_mean() -> None:
    """beta = (T - 1) / (T + 1), over independent gradients: 1/T of one gradient's variance."""
    batches = draws(40, 30, 4_000)
    one = gradients_of(BatchKDE(Rectangle(0.3)), batches)[-1].var().item()
    for cls in (MomentumKDE, MeanKDE, WindowKDE):
        found = gradients_of(cls(Rectangle(0.3), steps=4), batches)[-1].var().item()
        assert found == pytest.approx(one / 4, rel=0.1), cls.__name__


def state_bytes(estimator: Estimator, d_sae: int) -> int:
    return sum(value.nbytes for value in estimator.init(d_sae).values())


def test_memory_is_what_the_docstrings_state() -> None:
    for d_sae in (1, 1000):
        assert state_bytes(BatchKDE(), d_sae) == 0
        assert state_bytes(MomentumKDE(steps=9), d_sae) == 4 * d_sae + 4
        assert state_bytes(MeanKDE(steps=9), d_sae) == 4 * 9 * d_sae + 8
        latent = 9 * (20 * 5 + 8)
        assert state_bytes(WindowKDE(steps=9, slots=5), d_sae) == latent * d_sae + 16 * 9 + 8


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_are_positive(steps: int) -> None:
    for cls in (MomentumKDE, MeanKDE, WindowKDE):
        with pytest.raises(InputError, match=f"^{cls.__name__}: steps must be at least 1"):
            cls(steps=steps)


def test_nothing_near_is_no_gradient() -> None:
    far = torch.full((10, 3), 9.0)
    for cls in (BatchKDE, MomentumKDE, MeanKDE, WindowKDE):
        for found in gradients_of(cls(Rectangle(0.3)), [far, far]):
            assert torch.equal(found, torch.zeros(3))


def test_no_penalty_leaves_the_reconstruction() -> None:
    x = inputs(50)
    expected = threshold_gradient(sae_of(NoPenalty(), Rectangle(0.4)), x)
    found = threshold_gradient(sae_of(NoPenalty(), MeanKDE(Rectangle(0.4))), x)
    torch.testing.assert_close(found, expected)
