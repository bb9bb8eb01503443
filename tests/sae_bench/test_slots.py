"""Slots: what is one, and what may stand in it."""

from typing import Any, ClassVar

import pytest

from sae_bench.activations import JumpReLU, RawThreshold, ReLU
from sae_bench.decoders import UnitRows
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1
from sae_bench.sae import SparseAutoencoder
from sae_bench.slots import Slotted
from tests.small import D_IN, D_SAE


class WithSlots(SparseAutoencoder):
    """New defaults with and without annotation, slots of its own, and what is no slot."""

    penalty: Any = L0(0.5)
    activation = JumpReLU(RawThreshold(0.5))
    alpha: float = 0.25
    names: tuple[str, ...] = ("a",)
    no_default: int
    not_a_slot = 3


def test_a_subclass_adds_slots_and_changes_defaults() -> None:
    sae = WithSlots(D_IN, D_SAE, alpha=0.5)
    assert sae.slots == {
        "activation": JumpReLU(RawThreshold(0.5)),
        "penalty": L0(0.5),
        "kernel": BatchKDE(),
        "decoder": UnitRows(),
        "alpha": 0.5,
        "names": ("a",),
    }


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (
            {"penality": L1(1.0)},
            "unknown argument 'penality'; it takes activation, penalty, kernel",
        ),
        ({"biases": ()}, "unknown argument 'biases'"),
        ({"penalty": ReLU()}, r"expected a Penalty, got ReLU\(\)"),
        ({"penalty": 0.1}, "expected a Penalty, got 0.1"),
        ({"activation": ReLU}, r"expected an Activation, got the class ReLU \(write ReLU\(...\)\)"),
        ({"kernel": L1(1.0)}, "expected an Estimator, got L1"),
        ({"alpha": "much"}, "expected a number, got 'much'"),
    ],
)
def test_wrong_slots_are_refused_in_one_line(slots: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^WithSlots(\.\w+)?: {message}"):
        WithSlots(D_IN, D_SAE, **slots)


def test_advice_for_what_could_be_a_slot() -> None:
    for name in ("not_a_slot", "no_default"):
        with pytest.raises(InputError, match=r"; annotate it in the class, with a default"):
            WithSlots(D_IN, D_SAE, **{name: 3})


def test_defaults_are_held_against_annotations_too() -> None:
    class Careless(SparseAutoencoder):
        penalty = L1  # type: ignore[assignment]

    with pytest.raises(InputError, match=r"^Careless\.penalty: expected a Penalty, got the class"):
        Careless(D_IN, D_SAE)


def test_a_kernel_as_the_default_of_the_slot() -> None:
    class WithKernel(SparseAutoencoder):
        kernel = Rectangle(0.5)  # type: ignore[assignment]

    assert WithKernel(D_IN, D_SAE).kernel == BatchKDE(Rectangle(0.5))


def test_class_variables_and_properties_are_no_slots() -> None:
    class Thing(Slotted):
        size: int = 3
        constant: ClassVar[int] = 4
        derived: int

        @property
        def derived(self) -> int:  # type: ignore[no-redef]
            return 2 * self.size

    assert Thing.slot_types() == {"size": int}
    assert Thing().slots == {"size": 3}
    assert Thing.resolve({"size": 5}) == {"size": 5}
