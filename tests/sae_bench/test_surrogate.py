from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.components import subclasses
from sae_bench.estimators import BatchKDE, Estimator, as_estimator
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.surrogate import _Jump, jump

KERNELS = [cls for cls in subclasses(Kernel) if cls.__module__ == "sae_bench.kernels"]


class Case(NamedTuple):
    """Pre-activations around their thresholds, and the gradients that arrive from above."""

    pre: Tensor
    theta: Tensor
    g_f: Tensor
    g_step: Tensor


def case(seed: int = 0, theta: float = 0.3, batch: int = 64, d_sae: int = 5) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    thresholds = theta * (1 + 0.1 * draw(d_sae))
    return Case(draw(batch, d_sae), thresholds, draw(batch, d_sae), draw(batch, d_sae))


def closed_form(case: Case, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """dL/dpre and dL/dtheta, sample by sample and latent by latent (equations 11-12)."""
    kernel, eps = estimator.kernel, estimator.kernel.bandwidth
    grad_pre, grad_theta = torch.zeros_like(case.pre), torch.zeros_like(case.theta)
    for a in range(len(case.pre)):
        for i in range(len(case.theta)):
            pre, theta = case.pre[a, i], case.theta[i]
            g_f, g_step = case.g_f[a, i], case.g_step[a, i]
            K = kernel.density((pre - theta) / eps)
            grad_theta[i] += -(theta / eps) * K * g_f - (1 / eps) * K * g_step
            grad_pre[a, i] += g_f * float(pre > theta)
            if estimator.to_input:
                grad_pre[a, i] += (theta / eps) * K * g_f + (1 / eps) * K * g_step
    return grad_pre, grad_theta


def gradients(case: Case, estimator: Estimator, function: Any = jump) -> tuple[Tensor, Tensor]:
    """dL/dpre and dL/dtheta by autograd, for L = sum (g_f f + g_step step)."""
    pre, theta = case.pre.clone().requires_grad_(), case.theta.clone().requires_grad_()
    f, step = function(pre, theta, estimator)
    ((case.g_f * f).sum() + (case.g_step * step).sum()).backward()
    assert pre.grad is not None
    assert theta.grad is not None
    return pre.grad, theta.grad


def check(case: Case, estimator: Estimator, function: Any = jump) -> None:
    for found, expected in zip(
        gradients(case, estimator, function), closed_form(case, estimator), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=8), st.floats(0, 1, width=32))
def test_forward_is_a_strict_step(values: list[float], theta: float) -> None:
    pre = torch.tensor([[*values, theta]])
    f, step = jump(pre, torch.full((pre.shape[1],), theta), BatchKDE())
    for value, code, on in zip(pre[0].tolist(), f[0].tolist(), step[0].tolist(), strict=True):
        assert on == (1.0 if value > theta else 0.0)
        assert code == (value if value > theta else 0.0)
    assert f[0, -1] == 0  # a pre-activation equal to its threshold is off
    assert step[0, -1] == 0


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda cls: cls.__name__)
def test_backward_is_the_closed_form(kernel: type[Kernel], to_input: bool) -> None:
    for seed, bandwidth in enumerate((0.05, 0.5, 2.0)):
        check(case(seed), BatchKDE(kernel(bandwidth), to_input=to_input))


class SeesCodes(_Jump):
    """The trap: the window is centred on f instead of pre."""

    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, theta: Tensor, estimator: Estimator
    ) -> tuple[Tensor, Tensor]:
        f, step = _Jump.forward(ctx, pre, theta, estimator)
        ctx.save_for_backward(f, theta, step)
        return f, step


class SeesReLU(_Jump):
    """The trap: the window is centred on ReLU(pre) instead of pre."""

    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, theta: Tensor, estimator: Estimator
    ) -> tuple[Tensor, Tensor]:
        f, step = _Jump.forward(ctx, pre, theta, estimator)
        ctx.save_for_backward(pre.relu(), theta, step)
        return f, step


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda cls: cls.__name__)
def test_the_window_sees_pre(kernel: type[Kernel]) -> None:
    """With theta < eps / 2 every inactive token would fall into a window around f or ReLU(pre).
    The two copies of the jump that have this trap built in fail the check that `jump` passes, and
    their thresholds' gradients are too large by far."""
    low, estimator = case(theta=0.05), BatchKDE(kernel(0.5))
    check(low, estimator)
    for trapped in (SeesCodes, SeesReLU):
        with pytest.raises(AssertionError, match="not close"):
            check(low, estimator, trapped.apply)
    ones = low._replace(g_f=torch.zeros_like(low.g_f), g_step=torch.ones_like(low.g_step))
    true, seen = (gradients(ones, estimator, f)[1].abs() for f in (jump, SeesReLU.apply))
    assert (seen > 1.4 * true).all()


def test_a_scalar_zero_threshold_is_the_relu() -> None:
    pre, g_f = case().pre.requires_grad_(), case().g_f
    f, _ = jump(pre, pre.new_zeros(()), BatchKDE(Rectangle(0.5)))
    assert torch.equal(f, pre.relu())
    (ours,) = torch.autograd.grad(f, pre, g_f)
    (relu,) = torch.autograd.grad(pre.relu(), pre, g_f)
    assert torch.equal(ours, relu)


def test_a_scalar_threshold_gathers_the_gradient_of_all_latents() -> None:
    data, estimator = case(), BatchKDE(Rectangle(0.5))
    each = data._replace(theta=torch.full_like(data.theta, 0.3))
    one = data._replace(theta=torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(gradients(one, estimator)[1], gradients(each, estimator)[1].sum())


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("used", ["f", "step"])
def test_an_unused_output_contributes_nothing(used: str, to_input: bool) -> None:
    data, estimator = case(), BatchKDE(Rectangle(0.5), to_input=to_input)
    pre, theta = data.pre.requires_grad_(), data.theta.requires_grad_()
    f, step = jump(pre, theta, estimator)
    loss = (data.g_f * f).sum() if used == "f" else (data.g_step * step).sum()
    found = torch.autograd.grad(loss, (pre, theta), allow_unused=True)
    nothing = {"g_step" if used == "f" else "g_f": torch.zeros_like(data.g_f)}
    expected = closed_form(data._replace(**nothing), estimator)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.zeros_like(reference) if ours is None else ours, reference)


@pytest.mark.parametrize("to_input", [False, True])
def test_either_input_may_be_a_constant(to_input: bool) -> None:
    data, estimator = case(), BatchKDE(Rectangle(0.5), to_input=to_input)
    both = closed_form(data, estimator)
    for index in range(2):
        inputs = [data.pre.clone(), data.theta.clone()]
        inputs[index].requires_grad_()
        f, step = jump(inputs[0], inputs[1], estimator)
        ((data.g_f * f).sum() + (data.g_step * step).sum()).backward()
        torch.testing.assert_close(inputs[index].grad, both[index])


def test_without_straight_through_the_step_passes_nothing_to_pre() -> None:
    pre = case().pre.requires_grad_()
    _, step = jump(pre, pre.new_zeros(()), BatchKDE(Rectangle(0.5)))
    (found,) = torch.autograd.grad(step.sum(), pre, allow_unused=True)
    assert found is None


class Stop(torch.autograd.Function):
    """The identity, through which no gradient returns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None


def test_no_gradient_from_above_is_no_gradient_below() -> None:
    data = case()
    pre, theta = data.pre.requires_grad_(), data.theta.requires_grad_()
    f, _ = jump(pre, theta, BatchKDE(Rectangle(0.5), to_input=True))
    Stop.apply(f).sum().backward()
    assert pre.grad is None
    assert theta.grad is None


def test_a_bare_kernel_means_the_batch_estimator() -> None:
    assert as_estimator(Rectangle(0.5)) == BatchKDE(Rectangle(0.5))
    estimator = BatchKDE(Rectangle(0.5), to_input=True)
    assert as_estimator(estimator) is estimator
