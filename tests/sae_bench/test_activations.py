import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.activations import (
    Activation,
    JumpReLU,
    LogThreshold,
    RawThreshold,
    ReLU,
    ThresholdForm,
    TopK,
)
from sae_bench.components import subclasses
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Rectangle, Triangle
from sae_bench.penalties import L0
from sae_bench.sae import SparseAutoencoder

ESTIMATOR = BatchKDE(Rectangle(0.5))
FORMS = list(subclasses(ThresholdForm))


def pre_activations(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own_of(activation: Activation, d_sae: int) -> dict[str, Tensor]:
    return {name: t.double() for name, t in activation.parameters(d_sae).items()}


def test_relu() -> None:
    pre = pre_activations(9, 5)
    latents = ReLU()(pre, {}, ESTIMATOR)
    assert latents.pre is pre
    assert torch.equal(latents.f, pre.relu())
    assert torch.equal(latents.step, (pre > 0).double())
    assert ReLU().threshold({}) is None


@pytest.mark.parametrize("form", FORMS, ids=lambda cls: cls.__name__)
def test_jumprelu_keeps_what_lies_above_its_threshold(form: type[ThresholdForm]) -> None:
    activation, pre = JumpReLU(form(0.3)), pre_activations(9, 5)
    own = own_of(activation, 5)
    theta = activation.threshold(own)
    assert torch.allclose(theta, torch.full((5,), 0.3, dtype=torch.float64))
    latents = activation(pre, own, ESTIMATOR)
    assert torch.equal(latents.f, torch.where(pre > theta, pre, 0.0))
    assert torch.equal(latents.step, (pre > theta).double())


@pytest.mark.parametrize("form", FORMS, ids=lambda cls: cls.__name__)
def test_thresholds_start_in_float32_whatever_the_default(form: type[ThresholdForm]) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        start = form(0.001).initial(4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert start.dtype == torch.float32
    assert torch.allclose(form(0.001).value(start), torch.full((4,), 0.001), rtol=1e-5)


@pytest.mark.parametrize("s", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("form", FORMS, ids=lambda cls: cls.__name__)
def test_folding_multiplies_the_threshold(form: type[ThresholdForm], s: float) -> None:
    activation = JumpReLU(form(0.2))
    own = own_of(activation, 3)
    activation.fold_(own, s)
    assert torch.allclose(activation.threshold(own), torch.full((3,), 0.2 * s).double())


def test_a_raw_threshold_is_clamped_and_a_log_threshold_needs_no_clamp() -> None:
    raw, own = JumpReLU(RawThreshold()), {"raw_threshold": torch.tensor([-0.5, 0.0, 0.5])}
    raw.project_(own)
    assert own["raw_threshold"].tolist() == [0.0, 0.0, 0.5]
    log, own = JumpReLU(LogThreshold()), {"log_threshold": torch.tensor([-50.0, 0.0])}
    log.project_(own)
    assert own["log_threshold"].tolist() == [-50.0, 0.0]
    assert (log.threshold(own) > 0).all()


def test_an_sae_clamps_its_raw_thresholds_after_an_update() -> None:
    sae = SparseAutoencoder(3, 4, activation=JumpReLU(RawThreshold()), penalty=L0(1.0))
    sae.threshold_parameters[0].data.copy_(torch.tensor([-1.0, -1e-9, 0.0, 2.0]))
    sae.project_parameters_()
    assert sae.threshold.tolist() == [0.0, 0.0, 0.0, 2.0]


class WithoutChain(LogThreshold):
    """The trap: the gradient of theta is written into log theta without the factor theta."""

    def value(self, parameter: Tensor) -> Tensor:
        return parameter + (parameter.exp() - parameter).detach()


def threshold_gradient(form: ThresholdForm, theta: Tensor) -> Tensor:
    parameter = theta.log() if isinstance(form, LogThreshold) else theta.clone()
    parameter.requires_grad_()
    latents = JumpReLU(form)(pre_activations(64, 3), {form.name: parameter}, ESTIMATOR)
    (latents.f.square().sum() + 0.3 * latents.step.sum()).backward()
    assert parameter.grad is not None
    return parameter.grad


def test_a_log_threshold_has_its_chain_factor() -> None:
    """d/dlog(theta) = theta d/dtheta; a copy with the factor left out fails this test."""
    theta = torch.tensor([0.05, 0.2, 0.4], dtype=torch.float64)
    expected = theta * threshold_gradient(RawThreshold(), theta)
    assert (expected.abs() > 0).all()
    torch.testing.assert_close(threshold_gradient(LogThreshold(), theta), expected)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(threshold_gradient(WithoutChain(), theta), expected)


@given(st.integers(1, 12), st.integers(0, 1_000))
def test_topk_keeps_the_k_largest_of_each_row(k: int, seed: int) -> None:
    pre = pre_activations(7, 12, seed=seed)
    latents = TopK(k)(pre, {}, ESTIMATOR)
    for row, codes, step in zip(pre, latents.f, latents.step, strict=True):
        kept = sorted(range(12), key=lambda i: -row[i].item())[:k]
        for i in range(12):
            on = i in kept and row[i] > 0
            assert codes[i] == (row[i] if on else 0)
            assert step[i] == float(on)


def test_topk_of_positive_values_is_exactly_k_even_with_ties() -> None:
    for pre in (torch.ones(4, 9), pre_activations(4, 9).abs(), torch.ones(4, 9).cumsum(1) // 3 + 1):
        for k in range(1, 10):
            latents = TopK(k)(pre, {}, ESTIMATOR)
            assert ((latents.f > 0).sum(1) == k).all()
            assert torch.allclose(latents.f.sum(1), pre.topk(k).values.sum(1))
            assert torch.equal(latents.step, (latents.f > 0).to(pre.dtype))


def test_topk_counts_values_that_are_not_positive_as_off() -> None:
    latents = TopK(3)(
        torch.tensor([[-1.0, 0.0, 2.0, -3.0], [-1.0, -2.0, -3.0, 0.0]]), {}, ESTIMATOR
    )
    assert latents.f.tolist() == [[0.0, 0.0, 2.0, 0.0], [0.0] * 4]
    assert latents.step.sum().item() == 1


def test_topk_passes_gradients_to_what_it_kept() -> None:
    pre = pre_activations(6, 8).requires_grad_()
    latents = TopK(3)(pre, {}, ESTIMATOR)
    latents.f.sum().backward()
    assert torch.equal(pre.grad, latents.step)


def test_k_larger_than_the_dictionary_is_refused() -> None:
    with pytest.raises(InputError, match="k = 9 is larger than d_sae = 8; lower k or raise d_sae"):
        TopK(9).parameters(8)
    with pytest.raises(InputError, match="larger than d_sae"):
        SparseAutoencoder(3, 8, activation=TopK(9))
    SparseAutoencoder(3, 8, activation=TopK(8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(0), "TopK: k must be a positive integer, got 0"),
        (lambda: LogThreshold(0.0), "LogThreshold: start must be a positive number, got 0.0"),
        (lambda: LogThreshold(math.nan), "start must be a positive number"),
        (lambda: LogThreshold(math.inf), "start must be a positive number"),
        (lambda: RawThreshold(-1e-9), "RawThreshold: start must be a number >= 0, got -1e-09"),
        (lambda: RawThreshold(math.inf), "start must be a number >= 0"),
    ],
)
def test_values_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_k_is_a_whole_number() -> None:
    activation = TopK(3)
    object.__setattr__(activation, "k", 2.5)
    with pytest.raises(InputError, match=r"k must be a positive integer, got 2\.5"):
        activation.__post_init__()


def test_objections_to_a_penalty_on_the_step() -> None:
    to_input = BatchKDE(Triangle(0.1), to_input=True)
    assert JumpReLU().objection_to_step(ESTIMATOR) is None
    assert JumpReLU().objection_to_step(to_input) is None
    assert "to_input=True" in (ReLU().objection_to_step(ESTIMATOR) or "")
    assert ReLU().objection_to_step(to_input) is None
    assert "by construction" in (TopK().objection_to_step(to_input) or "")
