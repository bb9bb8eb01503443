import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.activations import (
    Activation,
    BatchTopK,
    FixedL0,
    JumpReLU,
    Latents,
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


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 1_000))
def test_batchtopk_keeps_the_k_times_batch_largest_positive_values(
    k: int, batch: int, seed: int
) -> None:
    pre = pre_activations(batch, 12, seed=seed)
    latents = BatchTopK(k)(pre, BatchTopK(k).buffers(12), ESTIMATOR)
    flat = [(pre[a, i].item(), a, i) for a in range(batch) for i in range(12)]
    kept = {(a, i) for value, a, i in sorted(flat, reverse=True)[: k * batch] if value > 0}
    for _, a, i in flat:
        assert latents.f[a, i] == (pre[a, i] if (a, i) in kept else 0)
        assert latents.step[a, i] == float((a, i) in kept)


def test_batchtopk_shares_its_k_out_over_the_batch() -> None:
    pre = pre_activations(40, 9).abs()
    for k in range(1, 10):
        step = BatchTopK(k)(pre, {}, ESTIMATOR).step
        assert step.sum() == k * 40
        assert k == 9 or step.sum(1).min() < k < step.sum(1).max()
    ties = BatchTopK(2)(torch.ones(5, 9), {}, ESTIMATOR)
    assert ties.step.sum() == 10


def test_batchtopk_passes_gradients_to_what_it_kept() -> None:
    pre = pre_activations(6, 8).requires_grad_()
    latents = BatchTopK(3)(pre, {}, ESTIMATOR)
    latents.f.sum().backward()
    assert torch.equal(pre.grad, latents.step)


def observed(activation: BatchTopK, *batches: list[float]) -> dict[str, Tensor]:
    """The buffers after batches with these codes."""
    own = activation.buffers(8)
    for codes in batches:
        f = torch.tensor([codes])
        activation.observe(Latents(f, f, (f > 0).float()), own)
    return own


def test_the_running_threshold_by_hand() -> None:
    """Weights 0.25, 0.5, 1 (times 0.5) of the smallest positive codes 4, 2, 1, over their sum."""
    activation = BatchTopK(2, decay=0.5)
    own = observed(activation, [4.0, 9.0, 0.0], [0.0, 2.0, 3.0], [1.0, 1.0, 0.0])
    assert activation.threshold(own).item() == pytest.approx((4 / 4 + 2 / 2 + 1) / (1.75))
    assert own["running_weight"].item() == 1 - 0.5**3


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=20), st.floats(0.0, 0.9999))
def test_the_running_threshold_is_bias_corrected(smallest: list[float], decay: float) -> None:
    activation = BatchTopK(2, decay)
    theta = activation.threshold(observed(activation, *([v, 20.0, 0.0] for v in smallest))).item()
    weights = [decay**age for age in reversed(range(len(smallest)))]
    expected = sum(w * v for w, v in zip(weights, smallest, strict=True)) / sum(weights)
    assert theta == pytest.approx(expected, rel=1e-3)
    if len(set(smallest)) == 1:
        assert theta == pytest.approx(smallest[0], rel=1e-4)


def test_a_batch_in_which_nothing_is_on_leaves_the_threshold() -> None:
    activation = BatchTopK(2, decay=0.5)
    assert activation.threshold(observed(activation)) == 0
    assert activation.threshold(observed(activation, [0.0, 0.0])) == 0
    assert observed(activation, [0.0], [3.0], [0.0]) == observed(activation, [3.0])


def test_batchtopk_in_evaluation_keeps_what_lies_above_its_threshold() -> None:
    activation, pre = BatchTopK(1), pre_activations(7, 8).requires_grad_()
    fresh = activation.infer(pre, activation.buffers(8), ESTIMATOR)
    assert torch.equal(fresh.f, pre.relu())
    own = observed(activation, [0.5, 2.0])
    latents = activation.infer(pre, own, ESTIMATOR)
    theta = activation.threshold(own)
    assert theta.item() == pytest.approx(0.5, rel=1e-6)
    assert torch.equal(latents.f, torch.where(pre > theta, pre, 0.0))
    assert torch.equal(latents.step, (pre > theta).double())
    latents.f.sum().backward()
    assert torch.equal(pre.grad, latents.step)


def test_other_activations_do_in_evaluation_what_they_do_in_training() -> None:
    pre = pre_activations(9, 5)
    for activation in (ReLU(), JumpReLU(LogThreshold(0.3)), TopK(2)):
        own = own_of(activation, 5)
        assert activation.buffers(5) == {}
        for ours, reference in zip(
            activation.infer(pre, own, ESTIMATOR), activation(pre, own, ESTIMATOR), strict=True
        ):
            assert torch.equal(ours, reference)


@pytest.mark.parametrize("cls", list(subclasses(FixedL0)), ids=lambda cls: cls.__name__)
def test_k_larger_than_the_dictionary_is_refused(cls: type[FixedL0]) -> None:
    message = f"{cls.__name__}: k = 9 is larger than d_sae = 8; lower k or raise d_sae"
    with pytest.raises(InputError, match=message):
        cls(9).parameters(8)
    with pytest.raises(InputError, match="larger than d_sae"):
        SparseAutoencoder(3, 8, activation=cls(9))
    SparseAutoencoder(3, 8, activation=cls(8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(0), "^TopK: k must be positive, got 0"),
        (lambda: BatchTopK(0), "^BatchTopK: k must be positive, got 0"),
        (lambda: BatchTopK(4, 1.0), "BatchTopK: decay must be at least 0 and below 1, got 1.0"),
        (lambda: BatchTopK(4, -0.1), "decay must be at least 0 and below 1, got -0.1"),
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


def test_objections_to_a_penalty_on_the_step() -> None:
    to_input = BatchKDE(Triangle(0.1), to_input=True)
    assert JumpReLU().objection_to_step(ESTIMATOR) is None
    assert JumpReLU().objection_to_step(to_input) is None
    assert "to_input=True" in (ReLU().objection_to_step(ESTIMATOR) or "")
    assert ReLU().objection_to_step(to_input) is None
    for activation in (TopK(), BatchTopK()):
        assert "by construction" in (activation.objection_to_step(to_input) or "")
