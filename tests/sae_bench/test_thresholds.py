"""Thresholds whose gradient an estimator gives: which tensors it sets, and what it refuses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import ReLUSAE
from sae_bench.activation_checks import ACTIVATION
from sae_bench.activations import Activation, JumpReLU, Latents, RawThreshold
from sae_bench.arm import grid
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE, ExactJump, WindowKDE
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L1
from sae_bench.run import run
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trainee
from tests.faulty import Hoyer
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
class Gain(Activation):
    """ReLU times a trained gain: no threshold at all."""

    def parameters(self, d_sae: int) -> dict[str, torch.Tensor]:
        return {"gain": torch.ones(d_sae)}

    def __call__(self, pre: Any, own: Any, estimator: Any) -> Latents:
        return Latents(pre, pre.relu() * own["gain"], (pre > 0).to(pre.dtype))

    def objection_to_step(self, estimator: Any) -> str:
        return "its step has no gradient"


@dataclass(frozen=True)
class Boastful(Gain):
    """Declares a threshold that it does not have."""

    trains_threshold = True


def step_of(activation: Activation, kernel: Any) -> SparseAutoencoder:
    """The SAE with the gradients of one step of the trainer."""
    slots = {"activation": activation, "kernel": kernel, "penalty": L1(0.1)}
    (arm,) = grid(SparseAutoencoder, d_sae=D_SAE, recipe=RECIPE, **slots)
    trainee = Trainee(arm, D_IN, torch.device("cpu"))
    trainee.gradients(0, small_batch())
    return trainee.sae


def test_an_estimator_leaves_the_activations_other_parameters_to_backward() -> None:
    activation = GainJump()
    batch, window = (step_of(activation, kernel) for kernel in (BatchKDE(WIDE), WINDOW))
    assert window.needs_samples
    for name in activation.parameters(1):
        wanted, found = (sae.get_parameter(name).grad for sae in (batch, window))
        assert wanted is not None
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_gain_is_no_threshold() -> None:
    """It is trained by backward, and conforms."""
    gain = step_of(Gain(), BatchKDE(WIDE)).get_parameter("gain").grad
    assert gain is not None
    assert gain.any()
    for activation in (Gain(), GainJump()):
        assert ACTIVATION.failures(activation) == {}


def test_a_threshold_that_is_not_there_must_not_be_declared() -> None:
    message = "set trains_threshold = False: its threshold depends on no parameter"
    with pytest.raises(InputError, match=f"^Boastful: {message}$"):
        step_of(Boastful(), WINDOW)


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


def test_what_single_samples_cannot_charge_is_skipped_with_a_reason(tmp_path: Path) -> None:
    kernels = [BatchKDE(WIDE), BatchKDE(WIDE, coefficient=ExactJump()), WINDOW]
    arms = [
        *grid(
            SparseAutoencoder,
            d_sae=D_SAE,
            activation=JumpReLU(RawThreshold(0.1)),
            penalty=Hoyer(0.01),
            kernel=kernels,
            recipe=RECIPE,
        ),
        *grid(ReLUSAE, d_sae=D_SAE, penalty=Hoyer(0.01), kernel=WIDE, recipe=RECIPE),
    ]
    table = run(arms, train=small_cache(), out=tmp_path / "run", device="cpu")
    assert list(table["status"]) == ["trained", "skipped", "skipped", "trained"]
    for reason in table["reason"][1:3]:
        assert reason == (
            "Hoyer defines no slope and no jump: thresholds can be trained by BatchKDE with "
            "straight-through coefficients only"
        )
    f = torch.ones(2)
    for method in (Hoyer(0.01).slope, Hoyer(0.01).jump):
        with pytest.raises(InputError, match=r"^Hoyer: Hoyer defines no slope"):
            method(f, f)
