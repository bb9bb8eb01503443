"""Coefficients against the loss itself: autograd, and latents switched on and off by hand."""

import pytest
import torch
from torch import Tensor

from sae_bench.activations import JumpReLU, Latents, RawThreshold
from sae_bench.estimators import BatchKDE, ExactJump, StraightThrough
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, Penalty, QuadraticFrequency, TargetMeanL0
from sae_bench.sae import Loss, SparseAutoencoder
from sae_bench.samples import Present, Samples
from tests.near import inputs, isolated, present_of, sae_of, threshold_gradient
from tests.sae_bench.test_penalties import PENALTIES
from tests.small import ARCHITECTURES, small_batch, small_sae, small_slots

N = 40


def every_sample(sae: SparseAutoencoder, x: Tensor, scale: float = 1.0) -> tuple[Samples, Loss]:
    """All tokens of all latents, in row-major order."""
    loss = sae.loss(x, scale)
    loss.latents.f.retain_grad()
    loss.total.backward()
    with torch.no_grad():
        samples = sae._samples(loss.latents, present_of(sae, scale), 1e9)
    assert len(samples.pre) == len(x) * sae.d_sae
    return samples, loss


def moved(sae: SparseAutoencoder, scale: float) -> Present:
    """A later state: other thresholds (so that some samples change sides), another coefficient."""
    present = present_of(sae, scale)
    return present._replace(theta=present.theta + torch.linspace(-0.15, 0.3, sae.d_sae))


def loss_with(sae: SparseAutoencoder, x: Tensor, latents: Latents, scale: float) -> Tensor:
    """The loss of a batch whose codes and steps are given."""
    error = (x - sae.decode(latents.f)).square().sum() / len(x)
    return error + scale * sae.penalty(latents, sae.W_dec)


def switched(latents: Latents, a: int, i: int, f: float | Tensor, step: float) -> Latents:
    """One latent of one token set to other values, all else frozen."""
    changed = Latents(*(tensor.detach().clone() for tensor in latents))
    changed.f[a, i], changed.step[a, i] = f, step
    return changed


def of_order_one_over_batch(penalty: Penalty) -> float:
    """Penalties on batch means charge a single token's step by 1/N more than their slope."""
    match penalty:
        case QuadraticFrequency(w=w):
            return penalty.coefficient / (N * w)
        case TargetMeanL0(target=t):
            return penalty.coefficient / (N * t**2)
    return 0.0


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_exact_jump_is_the_loss_off_minus_on(penalty: Penalty) -> None:
    """For every token and latent, in the state of capture and in a later one."""
    sae, x = sae_of(penalty, Rectangle(0.4)), inputs(N)
    samples, loss = every_sample(sae, x)
    for present, scale in ((present_of(sae), 1.0), (moved(sae, 3.0), 3.0)):
        found = ExactJump()(samples, present.at(samples.latent)).view(N, sae.d_sae)
        for a in range(0, N, 7):
            for i in range(sae.d_sae):
                with torch.no_grad():
                    on, off = (
                        loss_with(sae, x, switched(loss.latents, a, i, f, step), scale)
                        for f, step in ((present.theta[i], 1.0), (0.0, 0.0))
                    )
                error = (found[a, i] - N * (off - on)).abs().item()
                assert error <= 1e-9 + 1.001 * scale * of_order_one_over_batch(penalty)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_straight_through_is_the_papers_coefficient(penalty: Penalty) -> None:
    """-(theta g_f + g_H) by autograd, in the state of capture and in a later one, where the
    latent's own code and step follow the new threshold."""
    sae, x = sae_of(penalty, Rectangle(0.4)), inputs(N)
    samples, loss = every_sample(sae, x)
    for present, scale in ((present_of(sae), 1.0), (moved(sae, 3.0), 3.0)):
        found = StraightThrough()(samples, present.at(samples.latent)).view(N, sae.d_sae)
        for a in range(0, N, 7):
            for i in range(sae.d_sae):
                pre = loss.latents.pre[a, i].item()
                on = float(pre > present.theta[i])
                latents = switched(loss.latents, a, i, pre * on, on)
                f, step = latents.f.requires_grad_(), latents.step.requires_grad_()
                total = loss_with(sae, x, Latents(latents.pre, f, step), scale)
                g_f, g_step = torch.autograd.grad(total, (f, step), materialize_grads=True)
                expected = -N * (present.theta[i] * g_f[a, i] + g_step[a, i])
                error = (found[a, i] - expected).abs().item()
                # switching sides moves the batch's mean L0 and rates by up to 1/N
                assert error <= 1e-9 + 2.001 * scale * of_order_one_over_batch(penalty)


def test_the_coefficient_at_capture_is_stale_later() -> None:
    """Why `Samples` keeps parts and never the coefficient: the later one is another by far."""
    sae, x = sae_of(L0(0.3), Rectangle(0.4)), inputs(N)
    samples, _ = every_sample(sae, x)
    for coefficient in (StraightThrough(), ExactJump()):
        before = coefficient(samples, present_of(sae).at(samples.latent))
        after = coefficient(samples, moved(sae, 3.0).at(samples.latent))
        assert ((before - after).abs() > 0.1).double().mean() > 0.9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_parts_of_a_sample_hold_in_every_architecture(name: str) -> None:
    """However many reconstruction terms a latent takes part in: e - f ||d||^2 times the number of
    terms is half the descent of the reconstruction, so one batch equals autograd."""
    cls, activation = ARCHITECTURES[name], JumpReLU(RawThreshold(0.1))
    wanted = small_slots(cls) | {"activation": activation, "penalty": L0(0.1)}
    if reason := cls.objection(cls.resolve(wanted)):
        pytest.skip(reason)
    x, gradients = small_batch().double(), []
    for steps in (0, 1):
        kernel = Rectangle(0.3)
        estimator = Remembered(kernel) if steps else BatchKDE(kernel)
        sae = small_sae(cls, activation=activation, penalty=L0(0.1), kernel=estimator).double()
        gradients.append(threshold_gradient(sae, x))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0])


class Remembered(BatchKDE):
    """The batch estimator, by way of samples."""


@pytest.mark.parametrize(
    ("interference", "expected"), [(0.0, (0.99, 0.01)), (0.5, (1.41, 1.00))], ids=["alone", "noise"]
)
def test_the_coin_flip_of_an_isolated_latent(
    interference: float, expected: tuple[float, float]
) -> None:
    """At theta = sqrt(lambda) the mean coefficient is nothing, and what is left is noise: the
    standard deviation of coefficient / lambda over a window of theta / 40, for straight-through
    coefficients and exact jumps; interference in units of theta."""
    theta = 0.03
    charge, tokens = theta**2, 20_000
    z = theta * (1 + (torch.arange(tokens, dtype=torch.float64)[:, None] + 0.5) / tokens / 40)
    z = z - theta / 80
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    samples, present = isolated(z, theta, charge, interference=interference * theta * noise)
    found = [
        (coefficient(samples, present.at(samples.latent)) / charge).std().item()
        for coefficient in (StraightThrough(), ExactJump())
    ]
    assert found == pytest.approx(expected, abs=0.0075 if not interference else 0.015)
