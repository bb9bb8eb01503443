import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.activations import JumpReLU, LogThreshold, RawThreshold, ReLU, TopK
from sae_bench.arm import Arm, grid
from sae_bench.components import from_record
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE, PersistentBandwidth, TargetCount, WindowKDE
from sae_bench.kernels import Rectangle, Triangle
from sae_bench.modules import load_file
from sae_bench.penalties import L0, L1, NoPenalty, Penalty
from sae_bench.recipe import Recipe
from sae_bench.registry import architecture
from sae_bench.sae import SparseAutoencoder
from tests.small import ARCHITECTURES

RECIPE = Recipe(tokens=1_000, batch_size=64)
JUMP = JumpReLU(LogThreshold(0.1))


class TunedSAE(SparseAutoencoder):
    """A slot that is a plain tuple."""

    rates: tuple[float, ...] = (0.1, 0.2)


def test_a_grid_is_the_product_of_its_axes() -> None:
    arms = grid(
        SparseAutoencoder,
        d_sae=[8, 16],
        activation=JUMP,
        penalty=[L0(1e-3), L0(3e-3), L0(1e-2)],
        seed=range(2),
        recipe=RECIPE,
    )
    cells = [(arm.seed, arm.d_sae, arm.slots["penalty"].coefficient) for arm in arms]
    assert len(cells) == len(set(cells)) == 12
    assert {cell[0] for cell in cells} == {0, 1}
    assert {cell[1] for cell in cells} == {8, 16}
    assert {cell[2] for cell in cells} == {1e-3, 3e-3, 1e-2}
    assert all(arm.slots["activation"] == JUMP and arm.recipe is RECIPE for arm in arms)
    assert len({arm.key for arm in arms}) == 12


def test_single_values_make_one_arm() -> None:
    (arm,) = grid(SparseAutoencoder, d_sae=8, recipe=RECIPE)
    assert arm == Arm(SparseAutoencoder, 8, RECIPE)
    assert (arm.seed, arm.slots["penalty"]) == (0, L1(1e-2))


def test_recipes_are_an_axis_like_any_other() -> None:
    fast = RECIPE.replace(lr=1e-2)
    assert [a.recipe for a in grid(SparseAutoencoder, d_sae=8, recipe=[RECIPE, fast])] == [
        RECIPE,
        fast,
    ]


def test_a_slot_that_is_a_tuple_goes_into_a_list() -> None:
    (arm,) = grid(TunedSAE, d_sae=8, recipe=RECIPE, rates=[(0.5, 0.6)])
    assert arm.slots["rates"] == (0.5, 0.6)


def test_cells_without_meaning_stay_with_their_reason() -> None:
    arms = grid(
        SparseAutoencoder,
        d_sae=8,
        activation=[ReLU(), TopK(99), JUMP],
        penalty=L0(1),
        recipe=RECIPE,
    )
    assert [arm.objection is None for arm in arms] == [False, False, True]
    assert "to_input=True" in (arms[0].objection or "")
    assert "TopK fixes L0 by construction" in (arms[1].objection or "")
    assert len({arm.key for arm in arms}) == 3
    for arm in arms[:2]:
        with pytest.raises(InputError, match=r"ReLU has no threshold|TopK fixes L0"):
            arm.build(4)


def test_k_larger_than_the_dictionary_fails_before_training() -> None:
    with pytest.raises(InputError, match="k = 9 is larger than d_sae = 8"):
        grid(SparseAutoencoder, d_sae=[16, 8], activation=TopK(9), recipe=RECIPE)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, r"grid\(SparseAutoencoder\): d_sae is missing"),
        ({"d_sae": []}, r"grid\(SparseAutoencoder\): no value given for d_sae"),
        ({"d_sae": 8, "seed": range(0)}, "no value given for seed"),
        ({"d_sae": 8, "lambda_": 1}, "SparseAutoencoder: unknown argument 'lambda_'"),
        ({"d_sae": 8, "penalty": [L1(1.0), 2.0]}, ".penalty: expected a Penalty, got 2.0"),
        ({"d_sae": 0}, "SparseAutoencoder|d_sae must be a positive integer, got 0"),
    ],
)
def test_a_wrong_axis_is_refused(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid(SparseAutoencoder, recipe=RECIPE, **axes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architecture", "ReLUSAE", "an arm needs a subclass of SparseAutoencoder, got 'ReLUSAE'"),
        ("d_sae", 8.0, "d_sae: expected an integer, got 8.0"),
        ("seed", "0", "seed: expected an integer, got '0'"),
        ("recipe", None, "recipe: expected a Recipe, got None"),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, value: Any, message: str) -> None:
    arm = Arm(SparseAutoencoder, 8, RECIPE)
    object.__setattr__(arm, field, value)
    with pytest.raises(InputError, match=message):
        arm.__post_init__()


def test_keys_are_stable_and_unique_by_content() -> None:
    arm = Arm(SparseAutoencoder, 8, RECIPE, slots={"penalty": L1(0.5)})
    same = Arm(SparseAutoencoder, 8, RECIPE, slots={"penalty": L1(0.5), "activation": ReLU()})
    assert arm.key == same.key  # a default spelt out is the same arm
    others = [
        dataclasses.replace(arm, d_sae=9),
        dataclasses.replace(arm, seed=1),
        dataclasses.replace(arm, recipe=RECIPE.replace(clip=1.0)),
        dataclasses.replace(arm, slots={"penalty": L1(0.25)}),
        dataclasses.replace(arm, slots={"penalty": L1(0.5), "kernel": Triangle(0.1)}),
        dataclasses.replace(arm, architecture=TunedSAE),
    ]
    assert len({arm.key, *(other.key for other in others)}) == 1 + len(others)
    assert arm.key.startswith("sparseautoencoder-")


def test_a_record_says_everything_through_json() -> None:
    arm = Arm(SparseAutoencoder, 8, RECIPE, 3, {"penalty": L1(0.5), "kernel": Triangle(0.25)})
    record = json.loads(json.dumps(arm.record()))
    assert from_record(Recipe, record["recipe"]) == RECIPE
    assert from_record(Penalty, record["slots"]["penalty"]) == L1(0.5)
    assert record["slots"].keys() == arm.slots.keys()
    again = Arm(
        architecture(record["architecture"]),
        record["d_sae"],
        from_record(Recipe, record["recipe"]),
        record["seed"],
        {
            name: from_record(type(arm.slots[name]), value)
            for name, value in record["slots"].items()
        },
    )
    assert again.key == arm.key
    assert again == arm


def test_slots_cannot_be_changed_behind_the_key() -> None:
    slots = {"penalty": L1(0.5)}
    arm = Arm(SparseAutoencoder, 8, RECIPE, slots=slots)
    slots["penalty"] = L1(0.25)
    assert arm.slots["penalty"] == L1(0.5)
    with pytest.raises(TypeError):
        arm.slots["penalty"] = L1(0.25)  # type: ignore[index]


@pytest.mark.parametrize("cls", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_an_arm_builds_its_sae(cls: type[SparseAutoencoder]) -> None:
    arm = Arm(cls, 128, RECIPE, seed=4)
    sae = arm.build(4)
    assert type(sae) is cls
    assert (sae.d_in, sae.d_sae, sae.seed) == (4, 128, 4)
    assert sae.slots == dict(arm.slots)
    assert torch.equal(sae.W_dec, cls(4, 128, seed=4).W_dec)
    assert arm.name == cls.__name__.removesuffix("SAE")


def test_columns_of_a_threshold_arm() -> None:
    arm = Arm(
        SparseAutoencoder,
        8,
        RECIPE.replace(threshold_lr=0.5),
        seed=2,
        slots={"activation": JUMP, "penalty": L0(1e-3), "kernel": Rectangle(0.25)},
    )
    assert arm.columns() == {
        "arm": arm.key,
        "series": "SparseAutoencoder + JumpReLU + L0",
        "setting": arm.setting,
        "architecture": "SparseAutoencoder",
        "activation": "JumpReLU(LogThreshold(0.1))",
        "penalty": "L0",
        "coefficient": 1e-3,
        "kernel": "BatchKDE(Rectangle(0.25))",
        "d_sae": 8,
        "seed": 2,
        "decoder": "UnitRows",
        "lr": 7e-5,
        "threshold_lr": 0.5,
        "batch_size": 64,
        "data_seed": 0,
        "train_tokens": 960,
    }


def test_the_kernel_column_is_empty_where_no_kernel_is_used() -> None:
    relu = Arm(SparseAutoencoder, 8, RECIPE)
    topk = Arm(SparseAutoencoder, 8, RECIPE, slots={"activation": TopK(3), "penalty": NoPenalty()})
    to_input = BatchKDE(Rectangle(0.25), to_input=True)
    l0 = Arm(SparseAutoencoder, 8, RECIPE, slots={"penalty": L0(1.0), "kernel": to_input})
    l1 = Arm(SparseAutoencoder, 8, RECIPE, slots={"activation": JUMP, "penalty": L1(1.0)})
    assert relu.columns()["kernel"] == topk.columns()["kernel"] == ""
    assert l0.columns()["kernel"] == "BatchKDE(Rectangle(0.25), to_input=True)"
    assert l1.columns()["kernel"] == "BatchKDE(Rectangle(0.001))"


def test_arms_that_differ_in_seeds_alone_share_a_setting() -> None:
    arm = Arm(SparseAutoencoder, 8, RECIPE)
    other = Arm(SparseAutoencoder, 8, RECIPE.replace(data_seed=3), seed=5)
    assert arm.setting == other.setting
    assert arm.key != other.key
    assert arm.setting != Arm(SparseAutoencoder, 9, RECIPE).setting


def test_a_series_is_named_by_the_kinds_that_differ() -> None:
    slots = {"penalty": L1(0.5), "kernel": Triangle(0.1)}
    assert Arm(SparseAutoencoder, 8, RECIPE, slots={"penalty": L1(0.5)}).series == (
        Arm(SparseAutoencoder, 8, RECIPE, slots={"penalty": L1(0.7)}).series
    )
    assert "BatchKDE(Triangle)" in Arm(SparseAutoencoder, 8, RECIPE, slots=slots).series
    tuned = Arm(TunedSAE, 8, RECIPE)
    assert tuned.series == tuned.name


def test_kinds_of_parts_make_series() -> None:
    """Numbers do not; the parts that an object has by default are not named."""

    def series(**slots: Any) -> str:
        return Arm(architecture("JumpReLUSAE"), 8, RECIPE, slots=slots).series

    rectangle = BatchKDE(Rectangle(0.2))
    assert series(activation=JumpReLU(LogThreshold(0.2)), kernel=rectangle) == "JumpReLU"
    assert series(activation=JumpReLU(RawThreshold(0.2))) == ("JumpReLU + JumpReLU(RawThreshold)")
    assert series(kernel=PersistentBandwidth(WindowKDE(Rectangle(0.3)), low=0.5)) == (
        "JumpReLU + PersistentBandwidth(WindowKDE(Rectangle))"
    )
    assert series(kernel=PersistentBandwidth(BatchKDE(Triangle()), TargetCount(3.0))) == (
        "JumpReLU + PersistentBandwidth(BatchKDE(Triangle), TargetCount)"
    )


def test_switches_and_words_make_series() -> None:
    @dataclasses.dataclass(frozen=True)
    class Switched(L1):
        flag: bool = False
        how: str = "a"

    assert Switched(0.5).kind == "Switched"
    assert Switched(0.5, flag=True, how="b").kind == "Switched(flag=True, how=b)"


def test_an_arm_of_edited_code_is_another_arm(tmp_path: Path) -> None:
    """Whatever stands in its slots, however deep; what the project's own classes do is no part."""
    path, keys = tmp_path / "mine.py", []
    for factor in (1, 2, 1):
        path.write_text(
            "from dataclasses import dataclass\n"
            "from sae_bench.kernels import Rectangle\n"
            "@dataclass(frozen=True)\n"
            "class MyKernel(Rectangle):\n"
            f"    def density(self, u): return super().density({factor} * u)\n"
        )
        kernel = BatchKDE(load_file(path).MyKernel(0.1))
        slots = {"activation": JUMP, "kernel": PersistentBandwidth(kernel)}
        keys.append(Arm(SparseAutoencoder, 8, RECIPE, slots=slots).key)
    assert keys[0] == keys[2] != keys[1]
    assert "source" not in Arm(architecture("ReLUSAE"), 8, RECIPE).record()
