import dataclasses
import importlib
import inspect
import json
import pkgutil
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import architectures
import sae_bench
from sae_bench.ablation import Data
from sae_bench.activations import JumpReLU, LogThreshold, RawThreshold, TopK
from sae_bench.components import Component, digest, find_class, from_record, subclasses
from sae_bench.contexts import Packed
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE, Estimator, ExactJump, MomentumKDE, WindowKDE
from sae_bench.kernels import Gaussian, Kernel, Rectangle
from sae_bench.local_text import LocalText
from sae_bench.penalties import L0, L1, Penalty, Tanh
from sae_bench.recipe import Recipe

for package in (architectures, sae_bench):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)  # a component is known once its module is imported

REQUIRED: dict[str, Any] = {
    "coefficient": 0.25,
    "tokens": 5_000,
    "d_in": 4,
    "n_features": 8,
    "mean_l0": 2.0,
    "path": "text.txt",
    "name": "someone/text",
    "data": Data(tokens=100),
    "policy": Packed(24),
    "d_sae": 16,
    "recipe": Recipe(tokens=5_000),
    "inner": BatchKDE(),
    "text": LocalText("text.txt"),
    "estimators": (BatchKDE(), BatchKDE()),
}
"""Values for fields without a default."""


@dataclass(frozen=True)
class Nested(Component):
    """Every sort of field that a component may have."""

    penalties: tuple[Penalty, ...] = (L1(0.5), Tanh(0.1))
    kernel: Kernel | None = None
    name: str = "x"
    flag: bool = True
    pair: tuple[float, float] = (0.0, 0.999)


def concrete() -> list[type[Component]]:
    """Every component of the suite."""
    ours = {
        cls
        for cls in subclasses(Component)
        if cls.__module__.split(".")[0] in ("sae_bench", "architectures")
        and not inspect.isabstract(cls)
    }
    return sorted(ours, key=lambda cls: cls.__name__)


def missing(cls: type[Component]) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def test_the_list_of_components_is_not_empty() -> None:
    names = {cls.__name__ for cls in concrete()}
    assert {"Rectangle", "BatchKDE", "JumpReLU", "TopK", "L0", "Tanh", "UnitRows"} <= names
    assert {"Recipe", "AuxK", "SyntheticFeatures"} <= names


@pytest.mark.parametrize("cls", [Nested, *concrete()], ids=lambda cls: cls.__name__)
def test_a_record_gives_the_component_back_through_json(cls: type[Component]) -> None:
    component = cls(**{name: REQUIRED[name] for name in missing(cls)})
    record = json.loads(json.dumps(component.record()))
    assert from_record(cls, record) == component
    assert from_record(Component, record) == component
    assert digest(from_record(cls, record)) == digest(component)
    assert set(record) == {"class", *(field.name for field in dataclasses.fields(cls))}
    assert cls.__name__ in component.label


@given(
    st.floats(0, 1e3),
    st.floats(1e-9, 1e3, exclude_min=True),
    st.sampled_from([LogThreshold, RawThreshold]),
)
def test_any_number_survives_exactly(coefficient: float, width: float, form: type) -> None:
    for component in (L0(coefficient), BatchKDE(Gaussian(width)), JumpReLU(form(width))):
        assert from_record(Component, json.loads(json.dumps(component.record()))) == component


def test_a_nested_record_is_spelt_out() -> None:
    assert BatchKDE(Rectangle(0.5), to_input=True).record() == {
        "class": "BatchKDE",
        "kernel": {"class": "Rectangle", "bandwidth": 0.5},
        "to_input": True,
        "coefficient": {"class": "StraightThrough"},
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "expected the record of a Penalty, got 3"),
        ({"coefficient": 1.0}, "expected the record of a Penalty"),
        ({"class": "L7", "coefficient": 1.0}, "unknown Penalty 'L7'; known: "),
        ({"class": "Rectangle"}, "unknown Penalty 'Rectangle'"),
        ({"class": "L0", "coefficient": 1.0, "lambda": 2.0}, "L0 has no field 'lambda'"),
        ({"class": "L0"}, "coefficient"),
        ({"class": "L0", "coefficient": -1.0}, "must be a number >= 0, got -1.0"),
    ],
)
def test_a_wrong_record_is_one_line_that_names_its_place(record: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_record(Penalty, record, "config.json: penalty")
    assert str(caught.value).startswith("config.json: penalty: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_place_of_a_nested_mistake_is_named_once() -> None:
    record = BatchKDE().record()
    record["kernel"]["bandwidth"] = -2.0
    with pytest.raises(InputError) as caught:
        from_record(Component, record, "file")
    assert str(caught.value) == "file.kernel: Rectangle: the bandwidth must be positive, got -2.0"


def test_one_name_for_two_classes_is_an_error() -> None:
    def first() -> type[Component]:
        class Twin(Component):
            pass

        return Twin

    def second() -> type[Component]:
        class Twin(Component):
            pass

        return Twin

    older, newer = first(), first()  # as when a notebook cell is run twice
    assert find_class(Component, "Twin") is newer
    assert older is not newer
    other = second()
    with pytest.raises(InputError, match=r"'Twin' is defined twice, in .*first.* and .*second.*"):
        find_class(Component, "Twin")
    assert other.__name__ == "Twin"


def test_rescaled_follows_the_units_into_nested_components() -> None:
    assert L0(0.5).rescaled(3) == L0(4.5)
    assert L1(0.5).rescaled(3) == L1(1.5)
    assert Tanh(0.5, c=6.0).rescaled(2) == Tanh(2.0, c=3.0)
    assert TopK(5).rescaled(7) == TopK(5)
    assert BatchKDE(Gaussian(0.5), to_input=True).rescaled(4) == BatchKDE(
        Gaussian(2.0), to_input=True
    )
    assert JumpReLU(RawThreshold(0.25)).rescaled(4) == JumpReLU(RawThreshold(1.0))
    assert Nested(kernel=None).rescaled(2).kernel is None


def test_every_unit_belongs_to_a_field() -> None:
    for cls in concrete():
        assert set(cls.units) <= {field.name for field in dataclasses.fields(cls)}


def test_labels_are_short_and_can_hide_fields() -> None:
    @dataclass(frozen=True)
    class Two(Component):
        units: ClassVar = {}
        size: float = 1e-5
        inner: Component = L1(2.0)

    assert Two().label == "Two(1e-05, L1(2))"
    assert Two().label_without("inner") == "Two(1e-05)"
    assert L1(0.1).label_without("coefficient") == "L1"


def test_components_are_immutable_values() -> None:
    penalty = L0(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.coefficient = 2.0  # type: ignore[misc]
    assert penalty.replace(coefficient=2.0) == L0(2.0)
    assert len({L0(1.0), L0(1.0), L1(1.0)}) == 2


# -- types and completeness -----------------------------------------------------------------------


def built(cls: type[Component], **values: Any) -> Component:
    """What `cls(**values)` gives where no type checker of the tests stands before it."""
    made = cls.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(made, field.name, values.get(field.name, field.default))
    made.__post_init__()
    return made


@pytest.mark.parametrize(
    ("cls", "name", "value", "message"),
    [
        (L1, "coefficient", "a", "a number, got 'a'"),
        (L1, "coefficient", None, "a number, got None"),
        (L1, "coefficient", True, "a number, got True"),
        (Rectangle, "bandwidth", "a", "a number, got 'a'"),
        (WindowKDE, "kernel", 0.1, "a Kernel, got 0.1"),
        (BatchKDE, "kernel", WindowKDE(), "a Kernel, got WindowKDE("),
        (MomentumKDE, "steps", True, "an integer, got True"),
        (BatchKDE, "to_input", 8, "True or False, got 8"),
        (BatchKDE, "coefficient", ExactJump, "a Coefficient, got the class ExactJump (write Exact"),
        (Recipe, "lr", "x", "a number, got 'x'"),
        (TopK, "k", 2.5, "an integer, got 2.5"),
    ],
)
def test_a_field_of_another_type_is_refused_before_its_range_is_looked_at(
    cls: type[Component], name: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        built(cls, **{"tokens": 5_000, name: value})
    assert str(caught.value).startswith(f"{cls.__name__}.{name}: expected {message}")
    assert "\n" not in str(caught.value)


def test_steps_are_the_second_argument_of_estimators() -> None:
    assert MomentumKDE(Rectangle(), 8).steps == 8


def test_numpy_scalars_are_recorded_as_plain_numbers() -> None:
    penalty = built(Tanh, coefficient=np.float32(0.5), c=np.float64(2.0))
    assert json.loads(json.dumps(penalty.record())) == {"class": "Tanh", "coefficient": 0.5, "c": 2}
    assert penalty == Tanh(0.5, c=2.0)


def test_a_forgotten_dataclass_is_refused() -> None:
    class Forgetful(L1):
        power: float = 2.0

    with pytest.raises(InputError) as caught:
        Forgetful(0.1)
    assert str(caught.value) == (
        "Forgetful: power is no field yet: write @dataclass(frozen=True) above the class"
    )


def test_a_subclass_without_fields_of_its_own_needs_no_decorator() -> None:
    class Louder(L1):
        def __call__(self, latents: Any, W_dec: Any) -> Any:
            return 2 * super().__call__(latents, W_dec)

    assert Louder(0.1).record() == {"class": "Louder", "coefficient": 0.1}


def test_what_a_subclass_owes_its_base_is_named() -> None:
    @dataclass(frozen=True)
    class NoValue(Penalty):
        pass

    @dataclass(frozen=True)
    class Bare(Kernel):
        pass

    @dataclass(frozen=True)
    class Unwritten(Estimator):
        pass

    for build, message in (
        (lambda: NoValue(0.1), "NoValue: define value(latents, W_dec)"),
        (lambda: Bare(), "Bare: define density(u), roughness, variance, half_mean, support"),
        (
            lambda: Unwritten(),
            "Unwritten: define estimate(state, batch, bandwidth), kernel, "
            "reach(state, bandwidth), to_input",
        ),
    ):
        with pytest.raises(InputError) as caught:
            build()
        assert str(caught.value) == message


def test_types_are_checked_whether_or_not_the_base_is_called() -> None:
    @dataclass(frozen=True)
    class Picky(Component):
        size: int = 1

        def __post_init__(self) -> None:
            if self.size < 1:
                raise InputError("too small")

    with pytest.raises(InputError, match=r"Picky\.size: expected an integer, got 'a'"):
        Picky("a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too small"):
        Picky(0)
    assert type(Picky(np.int64(3)).size) is int  # type: ignore[arg-type]


def test_digest_sees_values_not_order() -> None:
    assert digest({"a": 1, "b": (L0(1.0),)}) == digest({"b": [L0(1.0).record()], "a": 1})
    assert digest(L0(1.0)) != digest(L0(2.0))
    assert len(digest(1, 7)) == 7
    # Written down once: names of folders hang on it.
    assert digest({"x": [0.1, None, True, "é"]}) == "577c669b495e"
