"""What plain SAEs compute, in float64 against the formulas, and their equals of other kinds."""

import pytest
import torch
from torch import Tensor

from sae_bench.errors import InputError
from sae_bench.plain import (
    Plain,
    PlainBatchTopK,
    PlainGated,
    PlainJumpReLU,
    PlainReLU,
    PlainTopK,
    subtracting,
)
from tests.foreign import D_SAE, K, raw_inputs, some

X = raw_inputs().double()


def double(*names: str) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in some(*names).items()}


BIASED, GATES = double("b_enc"), double("b_gate", "b_mag", "r_mag")
THRESHOLD = double("threshold")["threshold"]
RELU, TOPK = PlainReLU(**BIASED), PlainTopK(**BIASED, k=K)
JUMP = PlainJumpReLU(**BIASED, threshold=THRESHOLD)
BATCH = PlainBatchTopK(**BIASED, threshold=torch.full_like(THRESHOLD, 0.9), k=K)
GATED = PlainGated(**GATES)
WITH_THRESHOLDS = [RELU, JUMP, BATCH, GATED]
each = pytest.mark.parametrize("plain", WITH_THRESHOLDS, ids=lambda p: type(p).__name__)


def pre() -> Tensor:
    return (X - BIASED["b_dec"]) @ BIASED["W_enc"] + BIASED["b_enc"]


def test_codes() -> None:
    torch.testing.assert_close(RELU.encode(X), pre().clamp(min=0))
    torch.testing.assert_close(JUMP.encode(X), torch.where(pre() > THRESHOLD, pre(), 0.0))
    torch.testing.assert_close(BATCH.encode(X), torch.where(pre() > 0.9, pre(), 0.0))
    kth = pre().sort(1, descending=True).values[:, K - 1 : K]
    torch.testing.assert_close(TOPK.encode(X), torch.where(pre() >= kth, pre(), 0.0).clamp(min=0))
    shared = (X - GATES["b_dec"]) @ GATES["W_enc"]
    magnitude = (shared * GATES["r_mag"].exp() + GATES["b_mag"]).clamp(min=0)
    gated = torch.where(shared + GATES["b_gate"] > 0, magnitude, 0.0)
    torch.testing.assert_close(GATED.encode(X), gated)


def test_decoding() -> None:
    f = JUMP.encode(X)
    expected = torch.einsum("bi,id->bd", f, JUMP.W_dec) + JUMP.b_dec
    torch.testing.assert_close(JUMP.decode(f), expected)


def test_the_threshold_is_strict() -> None:
    plain = PlainJumpReLU(torch.eye(1), torch.eye(1), *torch.zeros(2, 1), torch.ones(1))
    assert plain.encode(torch.tensor([[1.0], [1.5]])).tolist() == [[0.0], [1.5]]


@each
def test_equals_of_other_kinds(plain: Plain) -> None:
    """There and back, too. In float64, so that no pre-activation is near its threshold."""
    f = plain.encode(X)
    for equal in (
        plain.as_jumprelu(),
        plain.as_gated(),
        plain.as_gated().as_jumprelu(),
        plain.as_jumprelu().as_gated(),
    ):
        torch.testing.assert_close(equal.encode(X), f)
        torch.testing.assert_close(equal.decode(f), plain.decode(f))
    assert type(plain.as_jumprelu()) is PlainJumpReLU
    assert type(plain.as_gated()) is PlainGated


def test_the_threshold_of_a_gate() -> None:
    """theta = max(b_mag - exp(r_mag) b_gate, 0), and some are below zero before."""
    raw = GATES["b_mag"] - GATES["r_mag"].exp() * GATES["b_gate"]
    assert D_SAE / 8 < (raw < 0).sum() < D_SAE * 7 / 8
    torch.testing.assert_close(GATED.as_jumprelu().threshold, raw.clamp(min=0))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_gate_that_is_open_before_the_magnitude_is_positive(threshold: float) -> None:
    """b_gate > b_mag: the ReLU decides."""
    one = torch.ones(1)
    plain = PlainGated(
        torch.eye(1), torch.eye(1), 0 * one, b_gate=2 * one, b_mag=threshold - one, r_mag=0 * one
    )
    x = torch.linspace(-4, 4, 33)[:, None]
    jump = plain.as_jumprelu()
    assert jump.threshold.item() == 0
    assert torch.equal(jump.encode(x), plain.encode(x))
    assert torch.equal(jump.as_gated().encode(x), plain.encode(x))


def test_topk_has_no_equal() -> None:
    for convert in (TOPK.as_jumprelu, TOPK.as_gated):
        with pytest.raises(InputError, match="a TopK SAE has no equal JumpReLU SAE"):
            convert()


def test_b_dec_conventions() -> None:
    """x W + b_enc_of_x is what (x - b_dec) W + b_enc is, and `subtracting` is its inverse."""
    torch.testing.assert_close(X @ JUMP.W_enc + JUMP.b_enc_of_x, JUMP.pre(X))
    torch.testing.assert_close(subtracting(JUMP.b_enc_of_x, JUMP.W_enc, JUMP.b_dec), JUMP.b_enc)


def test_biases_are_shifted_in_float64() -> None:
    """Large terms cancel: in float32 their sum would be off by its own round-off."""
    W = torch.tensor([[1e4], [-1e4]]) + torch.tensor([[0.125], [0.0]])
    b_dec = torch.tensor([1e4, 1e4])
    assert subtracting(torch.tensor([0.25]), W, b_dec).item() == 1250.25


def test_the_tensors_are_all_there() -> None:
    assert set(BATCH.tensors) == {"W_enc", "W_dec", "b_dec", "b_enc", "threshold"}
    assert (BATCH.d_in, BATCH.d_sae) == tuple(BATCH.W_enc.shape)
