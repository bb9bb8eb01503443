"""Values held against annotations."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from sae_bench.annotations import annotations, fit, fit_seed, shown, typed
from sae_bench.errors import InputError
from sae_bench.kernels import Kernel, Rectangle


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, 1.5),
        (float, 1),
        (int, 3),
        (bool, False),
        (str, "x"),
        (None, None),
        (float | None, None),
        (float | None, 2),
        (str | Path, Path("x")),
        (tuple[float, float], (0, 1.0)),
        (tuple[int, ...], ()),
        (Kernel, Rectangle()),
        (Literal["a", 3], 3),
        (Any, object),
        (dict[str, int], {"any": "inside"}),
    ],
)
def test_what_fits_stays_what_it_is(hint: Any, value: Any) -> None:
    assert fit(value, hint, "X.y") is value or fit(value, hint, "X.y") == value


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (float, "a", "a number, got 'a'"),
        (float, True, "a number, got True"),
        (float, torch.tensor(0.5), "a number, got tensor(0.5000)"),
        (int, 2.0, "an integer, got 2.0"),
        (int, False, "an integer, got False"),
        (bool, 8, "True or False, got 8"),
        (str, 1, "text, got 1"),
        (float | None, "x", "a number or None, got 'x'"),
        (Kernel, 0.1, "a Kernel, got 0.1"),
        (Kernel, Rectangle, "a Kernel, got the class Rectangle (write Rectangle(...))"),
        (tuple[float, float], 0.9, "a tuple (a number, a number), got 0.9"),
        (tuple[float, float], (0.9,), "a tuple (a number, a number), got (0.9,)"),
        (tuple[int, ...], (1, "b"), "a tuple, each item an integer, got (1, 'b')"),
        (Literal["a", "b"], "c", "'a' or 'b', got 'c'"),
        (dict[str, int], 3, "a dict, got 3"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(hint: Any, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        fit(value, hint, "X.y")
    assert str(caught.value) == f"X.y: expected {message}"


@pytest.mark.parametrize(
    ("hint", "value", "wanted"),
    [
        (float, np.float32(0.5), 0.5),
        (float, np.int64(2), 2),
        (int, np.int32(3), 3),
        (bool, np.bool_(True), True),
        (str, np.str_("x"), "x"),
        (float | None, np.float64(1.5), 1.5),
        (tuple[float, ...], [np.float64(1.5), 2], (1.5, 2)),
    ],
)
def test_numpy_scalars_and_lists_become_plain(hint: Any, value: Any, wanted: Any) -> None:
    found = fit(value, hint, "X.y")
    assert found == wanted
    assert type(found) is type(wanted)
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in wanted]


def test_annotations_come_from_bases_first_and_quotes_are_resolved() -> None:
    class Base:
        size: int = 1
        constant: ClassVar[int] = 2

    class Derived(Base):
        kernel: "Kernel"
        path: "NowhereToBeFound"  # type: ignore[name-defined]
        size: Any = 3
        constant: int = 4

    assert annotations(Derived) == {
        "size": int,
        "constant": ClassVar[int],
        "kernel": Kernel,
        "path": Any,
    }
    assert set(annotations(Derived, Derived)) == {"kernel", "path", "size", "constant"}


# -- arguments of functions -----------------------------------------------------------------------


class Thing:
    @typed("own")
    def __init__(self, size: int, other: "Thing | None" = None, *, own: str = "") -> None:
        self.size, self.other, self.own = size, other, own

    @classmethod
    @typed()
    def of(cls, share: float, *more: int, **names: str) -> "Thing":
        return cls(int(share))


def test_arguments_are_held_against_annotations() -> None:
    thing = Thing(np.int64(3), Thing(1), own=5)  # type: ignore[arg-type]
    assert (type(thing.size), thing.own) == (int, 5)  # what the function judges itself is left
    assert Thing.of(share=2).size == 2
    for call, message in (
        (lambda: Thing("3"), "Thing: size: expected an integer, got '3'"),
        (lambda: Thing(3, 4), "Thing: other: expected a Thing or None, got 4"),
        (lambda: Thing.of(True), "Thing.of: share: expected a number, got True"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == message
    with pytest.raises(TypeError, match="missing a required argument: 'size'"):
        Thing()  # type: ignore[call-arg]


@pytest.mark.parametrize("seed", [-(2**63), 0, 2**64 - 1, np.int64(5)])
def test_seeds_that_generators_take(seed: int) -> None:
    torch.Generator().manual_seed(fit_seed(seed, "X.seed"))


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, 0.0, True, "0", None])
def test_other_seeds(seed: Any) -> None:
    with pytest.raises(InputError, match=r"^X\.seed: "):
        fit_seed(seed, "X.seed")


def test_what_is_shown_has_one_line() -> None:
    assert "\n" not in shown(torch.zeros(20, 20))
