"""Slots compose: every combination either trains or says why it has no meaning."""

import inspect
import itertools
from typing import Any

import pytest
import torch

from sae_bench.activations import (
    Activation,
    BatchTopK,
    JumpReLU,
    LogThreshold,
    RawThreshold,
    ReLU,
    TopK,
)
from sae_bench.arm import Arm
from sae_bench.components import subclasses
from sae_bench.estimators import (
    BatchKDE,
    Estimator,
    ExactJump,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    WindowKDE,
)
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1, NoPenalty, Penalty
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trainee, train
from tests.small import D_IN, D_SAE, RECIPE, small_batch, small_cache

ACTIVATIONS: list[Activation] = [
    ReLU(),
    JumpReLU(LogThreshold(0.1)),
    JumpReLU(RawThreshold(0.1)),
    TopK(4),
    BatchTopK(4),
]
PENALTIES: list[Penalty] = [
    cls(coefficient=0.1)
    for cls in subclasses(Penalty)
    if cls.__module__ == Penalty.__module__ and not inspect.isabstract(cls)
]
WIDE = Rectangle(0.5)


def estimators(to_input: bool) -> list[Estimator]:
    around = [cls(WIDE, to_input=to_input) for cls in (BatchKDE, MomentumKDE, MeanKDE, WindowKDE)]
    exact = BatchKDE(WIDE, to_input=to_input, coefficient=ExactJump())
    return [*around, exact, PersistentBandwidth(BatchKDE(WIDE, to_input=to_input))]


def objects(activation: Activation, penalty: Penalty, kernel: Estimator) -> bool:
    """The rule, written down a second time."""
    if isinstance(activation, JumpReLU):
        return False
    if not isinstance(kernel, BatchKDE) or kernel.coefficient == ExactJump():
        return True  # no threshold for it to train
    if isinstance(activation, ReLU):
        return penalty.through_step is not kernel.to_input
    return penalty.through_step or kernel.to_input


@pytest.mark.parametrize("to_input", [False, True], ids=["theta", "input"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.label)
def test_every_combination_trains_or_says_why_not(
    activation: Activation, penalty: Penalty, to_input: bool
) -> None:
    """One optimiser step of the trainer, with each estimator."""
    for kernel in estimators(to_input):
        slots = {"activation": activation, "penalty": penalty, "kernel": kernel}
        arm = Arm(SparseAutoencoder, D_SAE, RECIPE, slots=slots)
        if objects(activation, penalty, kernel):
            assert arm.objection
            assert "\n" not in arm.objection
            continue
        assert arm.objection is None
        trainee = Trainee(arm, D_IN, torch.device("cpu"))
        before = {name: p.detach().clone() for name, p in trainee.sae.named_parameters()}
        assert trainee.gradients(0, small_batch()).total.isfinite()
        for name, parameter in trainee.sae.named_parameters():
            assert parameter.grad is not None, (kernel.label, name)
            assert parameter.grad.isfinite().all(), (kernel.label, name)
        trainee.step(0, small_batch())
        for name, parameter in trainee.sae.named_parameters():
            assert parameter.isfinite().all(), (kernel.label, name)
            assert not torch.equal(parameter, before[name]), (kernel.label, name)


def test_all_penalties_and_activations_are_combined() -> None:
    assert len(PENALTIES) >= 8
    ours = {cls for cls in subclasses(Activation) if cls.__module__ == Activation.__module__}
    bases = {cls for cls in ours if ours & set(cls.__subclasses__())}
    assert {type(activation) for activation in ACTIVATIONS} == ours - bases


# -- the six cells of the two 2x2s: {ReLU, JumpReLU} x {L1, L0} x {gradient to theta, to input} ----


def cell(jump: bool, l0: bool, to_input: bool, coefficient: float = 0.05) -> dict[str, Any]:
    return {
        "activation": JumpReLU(RawThreshold(0.1)) if jump else ReLU(),
        "penalty": L0(coefficient) if l0 else L1(coefficient),
        "kernel": BatchKDE(Rectangle(0.2), to_input=to_input),
    }


CELLS = {
    "ReLU+L1": (False, False, False),
    "ReLU+L0(input)": (False, True, True),
    "JumpReLU+L0(theta)": (True, True, False),
    "JumpReLU+L0(input)": (True, True, True),
    "JumpReLU+L1(theta)": (True, False, False),
    "JumpReLU+L1(input)": (True, False, True),
}


@pytest.mark.parametrize("key", CELLS.values(), ids=CELLS.keys())
def test_each_cell_trains_and_its_coefficient_buys_sparsity(key: tuple[bool, bool, bool]) -> None:
    recipe = RECIPE.replace(tokens=150 * 32, threshold_lr=1e-2)
    settings = (0.0, 0.2, 1.0) if key[1] else (0.0, 0.3, 1.0)
    arms = [Arm(SparseAutoencoder, D_SAE, recipe, slots=cell(*key, c)) for c in settings]
    found = train(arms, small_cache(), device="cpu")
    assert [trained.reason for trained in found] == [None] * 3
    last = [trained.history[-1] for trained in found]
    assert last[0]["l0"] > last[1]["l0"] > last[2]["l0"]
    assert last[0]["fvu"] < last[1]["fvu"] < last[2]["fvu"]


@pytest.mark.parametrize(
    ("jump", "l0", "to_input"), list(itertools.product([False, True], repeat=3))
)
def test_where_the_gradient_of_the_penalty_goes(jump: bool, l0: bool, to_input: bool) -> None:
    """To the encoder through codes (L1) or through the pseudo-derivative (to_input); to theta where
    there is one."""
    slots = cell(jump, l0, to_input)
    if not jump and l0 is not to_input:
        assert SparseAutoencoder.objection({**SparseAutoencoder.slot_defaults(), **slots})
        return
    sae = SparseAutoencoder(D_IN, D_SAE, **slots)
    term = sae.loss(small_batch()).terms["sparsity"]
    encoder, *theta = torch.autograd.grad(
        term, [sae.b_enc, *sae.threshold_parameters], materialize_grads=True
    )
    assert bool(encoder.any()) is (not l0 or to_input)
    assert [bool(gradient.any()) for gradient in theta] == [True] * jump


def test_no_penalty_is_a_penalty_like_any_other() -> None:
    sae = SparseAutoencoder(D_IN, D_SAE, penalty=NoPenalty(), activation=BatchTopK(3))
    assert sae.loss(small_batch()).terms["sparsity"] == 0
