"""Thresholds whose gradient an estimator gives: which tensors it sets, and what it refuses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import ReLUSAE
from sae_bench.activations import Activation, JumpReLU, Latents, RawThreshold
from sae_bench.arm import grid
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE, ExactJump, WindowKDE
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L1, Penalty
from sae_bench.run import run
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trainee
from tests.small import D_IN, D_SAE, RECIPE, small_batch, small_cache

WIDE = Rectangle(0.5)
WINDOW = WindowKDE(WIDE, steps=2, slots=32)


@dataclass(frozen=True)
class GainJump(JumpReLU):
    """JumpReLU times a trained gain: one of its two parameters decides the threshold."""

    form: RawThreshold = RawThreshold(0.1)

    def parameters(self, d_sae: int) -> dict[str, torch.Tensor]:
        return super().parameters(d_sae) | {"gain": torch.ones(d_sae)}

    def __call__(self, pre: Any, own: Any, estimator: Any) -> Latents:
        pre, f, step = super().__call__(pre, own, estimator)
        return Latents(pre, f * own["gain"], step)


@dataclass(frozen=True)
class Undeclared(GainJump):
    trains_threshold = False


def step_of(activation: Activation, kernel: Any) -> SparseAutoencoder:
    """The SAE after one step of the trainer, gradients left in place."""
    slots = {"activation": activation, "kernel": kernel, "penalty": L1(0.1)}
    (arm,) = grid(SparseAutoencoder, d_sae=D_SAE, recipe=RECIPE, **slots)
    trainee = Trainee(arm, D_IN, torch.device("cpu"))
    trainee.step(0, small_batch())
    return trainee.sae


def test_an_estimator_leaves_the_activations_other_parameters_to_backward() -> None:
    for activation in (GainJump(),):
        batch, window = (step_of(activation, kernel) for kernel in (BatchKDE(WIDE), WINDOW))
        for name in activation.parameters(1):
            wanted, found = (sae.get_parameter(name).grad for sae in (batch, window))
            assert wanted is not None
            assert wanted.abs().max() > 0
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert window.needs_samples is activation.trains_threshold


def test_a_threshold_that_is_trained_must_be_declared() -> None:
    with pytest.raises(
        InputError,
        match="Undeclared trains no threshold: state and exact-jump coefficients change nothing",
    ):
        step_of(Undeclared(), WINDOW)


# -- what estimators of users may return ----------------------------------------------------------


class NewKey(WindowKDE):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient, state | {"more": torch.zeros(2)}


class Scalar(WindowKDE):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient.sum(), state


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (NewKey(WIDE), "NewKey.estimate: the state must keep the names that `init` gave, .*more"),
        (Scalar(WIDE), r"Scalar.estimate: the gradient must have the shape \(16,\), got \(\)"),
    ],
)
def test_a_wrong_answer_is_one_line(estimator: WindowKDE, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        step_of(JumpReLU(RawThreshold(0.1)), estimator)


@dataclass(frozen=True)
class Clipped(BatchKDE):
    """Nothing says that this is not what autograd computes."""

    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return 0 * gradient, state


def test_a_subclass_of_the_batch_estimator_is_called() -> None:
    sae = step_of(JumpReLU(RawThreshold(0.1)), Clipped(WIDE))
    (threshold,) = sae.threshold_parameters
    assert threshold.grad is not None
    assert not threshold.grad.any()


# -- penalties that are no sum over codes ---------------------------------------------------------


@dataclass(frozen=True)
class HoyerSquare(Penalty):
    """(sum f)^2 / sum f^2: what one code costs depends on the others."""

    def value(self, latents: Any, W_dec: Any) -> Any:
        f = latents.f
        return (f.sum(1).square() / (f.square().sum(1) + 1e-12)).mean()


def test_what_single_samples_cannot_charge_is_skipped_with_a_reason(tmp_path: Path) -> None:
    kernels = [BatchKDE(WIDE), BatchKDE(WIDE, coefficient=ExactJump()), WINDOW]
    arms = [
        *grid(
            SparseAutoencoder,
            d_sae=D_SAE,
            activation=JumpReLU(RawThreshold(0.1)),
            penalty=HoyerSquare(0.01),
            kernel=kernels,
            recipe=RECIPE,
        ),
        *grid(ReLUSAE, d_sae=D_SAE, penalty=HoyerSquare(0.01), kernel=WINDOW, recipe=RECIPE),
    ]
    table = run(arms, train=small_cache(), out=tmp_path / "run", device="cpu")
    assert list(table["status"]) == ["trained", "skipped", "skipped", "skipped"]
    for reason in table["reason"][1:3]:
        assert reason == (
            "HoyerSquare defines no slope and no jump: thresholds can be trained by BatchKDE with "
            "straight-through coefficients only"
        )
    f = torch.ones(2)
    for method in (HoyerSquare(0.01).slope, HoyerSquare(0.01).jump):
        with pytest.raises(InputError, match=r"^HoyerSquare: HoyerSquare defines no slope"):
            method(f, f)
