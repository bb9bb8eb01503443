"""The factorial's core in other settings: what becomes of planted effects."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablations import factorial, scale
from ablations._fallen import described, fallen
from ablations._lines import CELLS, cell, prepared, trials
from ablations._scale_settings import PARTS, RETUNED, TRIED_AT
from ablations._survival import survives
from architectures import JumpReLUSAE
from sae_bench.ablation import Data, Finished
from sae_bench.activations import JumpReLU, LogThreshold, ReLU
from sae_bench.arm import Arm
from sae_bench.files import write_table
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L1
from sae_bench.results import Results
from sae_bench.sae import SparseAutoencoder
from sae_bench.text import After
from tests.ablations.test_factorial import synthetic
from tests.grids import tensor_cache

STUDY = scale.PRESETS["study"]
PUBLISHED = Path(__file__).parents[2] / "results"
NONE = pd.DataFrame()


def test_parts_differ_from_the_factorial_in_one_thing() -> None:
    parts = STUDY.parts()
    assert tuple(parts) == PARTS
    base = parts["base"]
    keys = {arm.key for arm in factorial.arms(factorial.STUDY)}
    assert {arm.key for arm in scale.arms(base)} <= keys
    changed = {
        name: [field.name for field in dataclasses.fields(part) if _differs(part, base, field.name)]
        for name, part in parts.items()
    }
    assert changed == {
        "base": [],
        "layer-5": ["data"],
        "wide": ["d_sae"],
        "long": ["data", "recipe", "again"],
        "slower": ["data", "recipe", "tuned"],
        "wide-long": ["data", "d_sae", "recipe", "settings", "tuned", "offsets"],
        "wide-start": ["data", "d_sae", "recipe", "settings", "tuned", "offsets"],
        "wide-tuned": ["d_sae", "recipe", "settings", "tuned", "offsets"],
    }
    longer, recipe = parts["long"].recipe, base.recipe
    assert (longer.tokens, longer.lr_decay) == (10 * recipe.tokens, 10 * recipe.lr_decay)
    assert parts["slower"].recipe == longer
    sizes = {name: len(scale.arms(part)) for name, part in parts.items()}
    fewer = {"wide-long": 16, "wide-start": 16, "wide-tuned": 20}
    assert sizes == dict.fromkeys(parts, 24) | {"long": 26} | fewer


def test_two_arms_are_trained_in_another_order() -> None:
    made = scale.arms(STUDY.parts()["long"])
    again = [arm for arm in made if arm.recipe.data_seed == 1]
    assert [arm.slots["penalty"] for arm in again] == [L1(0.012), L1(0.031)]
    twins = [arm for arm in made if arm.slots["penalty"] in (L1(0.012), L1(0.031))]
    assert len(twins) == 4
    assert len({(arm.architecture, arm.seed) for arm in twins}) == 2


def test_slower_divides_learning_rates_alone() -> None:
    parts = STUDY.parts()
    for fast, slow in zip(scale.arms(parts["long"]), scale.arms(parts["slower"]), strict=False):
        for rate in ("lr", "threshold_lr"):
            assert getattr(fast.recipe, rate) / getattr(slow.recipe, rate) == pytest.approx(10**0.5)
        rates = {"lr": fast.recipe.lr, "threshold_lr": fast.recipe.threshold_lr}
        assert slow.recipe.replace(**rates) == fast.recipe
        assert (slow.slots, slow.seed) == (fast.slots, fast.seed)


@pytest.mark.parametrize(("name", "jumprelu", "times"), [("long", False, 2), ("start", True, 8)])
def test_wide_parts_are_slower_and_start_where_few_latents_fire(
    name: str, jumprelu: bool, times: float
) -> None:
    part = STUDY.parts()[f"wide-{name}"]
    made = scale.arms(part)
    for arm in made:
        activation, below = arm.slots["activation"], arm.slots.get("offset")
        if activation == ReLU():
            assert (arm.recipe.lr, below) == (pytest.approx(1e-3), 0.075)
        elif jumprelu:
            assert activation.form.start + below == pytest.approx(0.075)
            assert arm.recipe.lr == pytest.approx(8e-3 / times)
        else:
            assert (arm.recipe.lr, below) == (pytest.approx(8e-3 / times), None)
    assert Counter(_named(made)) == dict.fromkeys(part.lines, 4)


def test_both_wide_parts_share_their_arms_of_relu() -> None:
    long, start = (
        {arm.key for arm in scale.arms(STUDY.parts()[f"wide-{name}"])} for name in ("long", "start")
    )
    assert len(long & start) == 8


def test_trials_are_equally_many_in_all_cells_and_of_other_documents() -> None:
    tuning, start = scale.PRESETS["tuning"], STUDY.parts()["wide-start"]
    tried = scale.arms(tuning)
    assert Counter(_named(tried)) == dict.fromkeys(start.lines, 8)
    rates = {(arm.recipe.lr, arm.recipe.threshold_lr) for arm in scale.arms(start)}
    assert rates < {(arm.recipe.lr, arm.recipe.threshold_lr) for arm in tried}
    offsets = {arm.slots["activation"]: arm.slots["offset"] for arm in scale.arms(start)}
    assert {arm.slots["activation"]: arm.slots["offset"] for arm in tried} == offsets
    assert {arm.seed for arm in tried}.isdisjoint(arm.seed for arm in scale.arms(start))
    assert isinstance(tuning.data, Data)
    assert tuning.data.text == After(factorial.TEXT, 4_700)  # a million tokens end in the 4,607th


def _named(arms: list[Arm]) -> pd.Series:
    return cell(pd.DataFrame([{"architecture": arm.name, **_slots(arm)} for arm in arms]))


def _slots(arm: Arm) -> dict[str, str | None]:
    penalty, kernel = arm.slots["penalty"], arm.slots["kernel"]
    windowed = arm.slots["activation"].trains_threshold or penalty.through_step
    return {"penalty": penalty.label, "kernel": kernel.label if windowed else None}


def _differs(one: object, other: object, name: str) -> bool:
    return getattr(one, name) != getattr(other, name)


@pytest.mark.parametrize(
    ("effect", "base", "word"),
    [
        (-0.2, -0.2, "survives"),
        (-0.08, -0.2, "weaker"),
        (-0.095, -0.2, "not decided (48% of it)"),
        (-0.105, -0.2, "not decided (52% of it)"),
        (-0.009, -0.2, "does not survive"),
        (0.3, -0.2, "does not survive"),
        (-0.2, 0.005, "not judged"),
        (float("nan"), 0.2, "no common range of L0"),
    ],
)
def test_words(effect: float, base: float, word: str) -> None:
    assert survives(effect, base, least=0.01) == word


def planted() -> Results:
    """The penalty's effect as in `base` at layer 5, and none of the activation's in `wide`; FVU is
    lower in both."""
    effects = {"base": (-0.2, -0.1), "layer-5": (-0.2, -0.04), "wide": (-0.2, 0.0)}
    parts = [
        synthetic(penalty, activation, seeds=1).assign(part=part, dead=0.01)
        for part, (penalty, activation) in effects.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    lower = table["fvu"] * np.where(table["part"] == "base", 1.0, 0.8)
    return Results(table.assign(fvu=lower), NONE)


def test_the_answer_says_what_survives() -> None:
    said = scale.answer(planted()).splitlines()
    activation = next(line for line in said if line.startswith("  JumpReLU for ReLU, FVU"))
    assert "base -9.6%" in activation
    assert re.search(r"layer-5 -4\.0% \([^)]*; 4 places\): not decided \(40%", activation)
    assert re.search(r"wide -0\.1% \([^)]*; 4 places\): does not survive", activation)
    penalty = next(line for line in said if line.startswith("  L0 for L1, FVU"))
    assert penalty.count("survives") == 2
    share = next(line for line in said if line.startswith("  L0 for L1, share"))
    assert "base +4.0 points" in share
    assert sum(
        line.startswith("  Both together, FVU at matched L0: base -25.9%; ") for line in said
    )
    assert not any("above 5%" in line for line in said)  # no firing frequencies were given
    simple = said[said.index("Place by place, layer-5:") + 1]
    assert simple.startswith("  FVU at matched L0, L0 16: JumpReLU for ReLU -3.8% under L1, -3.8% ")
    assert not any("no verdict." in line for line in said)
    assert not any(line.startswith("  Rates do not fit layer-5") for line in said)
    (against,) = [each for each in said if each.startswith("  wide against base")]
    assert "ReLU + L1 -20.0%; " in against
    assert "JumpReLU + L1 (theta) -11." in against
    assert said[-1] == "Not run: long, slower, wide-long, wide-start, wide-tuned."


def test_collapsed_arms_are_left_out_and_named() -> None:
    results = planted()
    table = results.table
    lost = (table["part"] == "wide") & (table["architecture"] == "ReLU")
    first = table.index[lost][:1]
    before = scale.answer(results)
    table.loc[first, ["dead", "fvu"]] = 0.95, 3.0
    said = scale.answer(results)
    assert "Left out" not in before
    assert "Left out, over 90% of the latents dead: wide, ReLU + L" in said
    assert "(FVU 3.00, 95%)." in said
    assert "  wide, dead latents at L0 16, 32, 64, 128: " in said
    assert "  wide, share of L0 above 10% at L0 16, 32, 64, 128: " in said


def test_a_part_that_lost_a_cell_is_not_compared() -> None:
    results = planted()
    table = results.table
    lost = (table["part"] == "wide") & (table["architecture"] == "ReLU")
    table.loc[lost, "dead"] = 0.95
    said = scale.answer(results).splitlines()
    assert "Not compared, since a cell has no arm left: wide." in said
    gone = "no arm of ReLU + L1 is left, no arm of ReLU + L0 (input) is left"
    assert f"  Rates do not fit wide: {gone}." in said
    assert said[-1] == "Not run: long, slower, wide-long, wide-start, wide-tuned."
    assert "Place by place, wide:" not in said
    found = scale.contrasts(results).dropna(subset=["contrast"])
    assert set(found["way"]) == {"base", "layer-5"}
    scale.figures(results)


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [("dead", 0.06, "6% dead at L0 32 in ReLU + L1."), ("fvu", 0.9, "in ReLU + L1.")],
)
def test_no_verdict_where_rates_do_not_fit(column: str, value: float, why: str) -> None:
    """Planted in one cell of one part."""
    results = planted()
    table = results.table
    here = (table["part"] == "layer-5") & (cell(table) == "ReLU + L1")
    table.loc[here, column] = value
    said = scale.answer(results).splitlines()
    (reason,) = [line for line in said if line.startswith("  Rates do not fit layer-5: ")]
    assert reason.endswith(why)
    assert reason.count(",") == 0
    verdicts = re.findall(r"layer-5 [^)]*places\): ([^.;]*)", "\n".join(said))
    assert set(verdicts) == {"no verdict"}


@pytest.mark.parametrize(("share", "fits"), [(0.04, True), (0.06, False)])
def test_dead_latents_of_the_tuned_part_are_counted_at_its_width(share: float, fits: bool) -> None:
    table = planted().table.replace({"part": {"layer-5": RETUNED}})
    here = table["part"] == RETUNED
    table.loc[here, "dead"] = 0.2
    found = table.loc[here, ["part", "arm"]].assign(unfired=share)
    said = scale.answer(Results(table, NONE, {"unfired": found}))
    assert (f"Rates do not fit {RETUNED}: " not in said) == fits
    assert ("6% dead at L0 32 in ReLU + L1" in said) != fits
    uncounted = scale.answer(Results(table, NONE))
    assert f"Rates do not fit {RETUNED}: dead latents were not counted in " in uncounted


def test_effects_are_held_against_those_of_base_over_the_same_places() -> None:
    """The activation's effect in base is twice as large at L0 16; a part that does not reach it has
    the effect of the others."""
    results = planted()
    table = results.table
    low = (table["part"] == "base") & (cell(table).str.startswith("JumpReLU")) & (table["l0"] < 20)
    table.loc[low, "fvu"] *= 0.5
    left = table[(table["part"] != "layer-5") | (table["l0"] > 20)]
    said = scale.answer(Results(left, NONE)).splitlines()
    line = next(each for each in said if each.startswith("  JumpReLU for ReLU, FVU"))
    of_base, there = re.findall(r"base (-[0-9.]+)%", line)
    assert float(of_base) < float(there) - 5
    assert re.search(r"; 2 places\), base -[0-9.]+% there: ", line)


def test_latents_that_never_fire_are_told_where_they_were_counted() -> None:
    results = planted()
    here = results.table["part"] == "wide"
    found = results.table.loc[here, ["part", "arm"]].assign(unfired=0.03)
    said = scale.answer(Results(results.table, NONE, {"unfired": found})).splitlines()
    told = [line for line in said if "latents that never fire in 29 tokens a latent" in line]
    assert len(told) == 1
    assert told[0].startswith("  wide, ")
    assert told[0].count("3%, 3%, 3%, 3%") == len(CELLS)


def test_the_last_part_has_the_rates_that_won_the_published_trials() -> None:
    table = prepared(pd.read_csv(PUBLISHED / "tables" / "wide_start_tuning.csv"))
    best = trials(table, TRIED_AT).groupby("cell").first()
    arms = scale.arms(STUDY.parts()[RETUNED])
    for arm, name in zip(arms, _named(arms), strict=True):
        won = best.loc[name]
        assert (arm.recipe.lr, arm.recipe.threshold_lr) == (won["lr"], won["threshold_lr"])
    assert {arm.key for arm in scale.arms(scale.PRESETS["tuning"])} == set(table["arm"])


def test_a_part_without_a_common_place_is_not_told() -> None:
    results = planted()
    table = results.table
    table.loc[table["part"] == "wide", "delta_lm_loss"] = np.nan
    told = [each for each in scale.answer(results).splitlines() if "LM loss at matched L0" in each]
    assert told
    assert all("layer-5" in each and "wide" not in each and "nan" not in each for each in told)


def test_no_verdict_where_a_cell_is_not_dense_enough_to_be_judged() -> None:
    results = planted()
    table = results.table
    here = (table["part"] == "layer-5") & (cell(table) == "ReLU + L1")
    left = table[~here | (table["l0"] < 20)]
    said = scale.answer(Results(left, NONE)).splitlines()
    assert "  Rates do not fit layer-5: L0 32 is not reached in ReLU + L1." in said


class Trained(Finished):
    """A run of one arm, whose SAE is made here: of four latents one is dead, one has fallen."""

    def sae(self, arm: str) -> SparseAutoencoder:
        made = JumpReLUSAE(8, 4, kernel=Rectangle(0.1), activation=JumpReLU(LogThreshold(0.5)))
        (log_threshold,) = made.threshold_parameters
        with torch.no_grad():
            log_threshold.copy_(torch.tensor([0.004, 0.03, 0.05, 0.9]).log())
        return made


def test_thresholds_of_latents_that_fired(tmp_path: Path) -> None:
    frequency = np.array([0.3, 0.1, 0.2, 0.0])
    table = planted().table.iloc[:2].drop(columns="part")
    table = table.assign(arm=["a", "b"], theta_over_eps=[0.4, np.nan])
    rates = [{"arm": arm, "eval_set": "held-out", "frequency": frequency} for arm in "ab"]
    write_table(tmp_path / "table.parquet", table)
    write_table(tmp_path / "frequencies.parquet", pd.DataFrame(rates))
    found = fallen(Trained(STUDY, table, tmp_path, tensor_cache()))
    (row,) = found.to_dict("records")
    assert row["arm"] == "a"
    assert row["live_theta_over_eps"] == pytest.approx(0.3)
    assert row["l0_share_fallen"] == pytest.approx(0.5)
    known = pd.DataFrame({"arm": ["a"], "part": "long", "cell": "JumpReLU + L1", "l0": 0.6})
    (_, said) = described(known, found.assign(part="long"))
    assert said == "  long, JumpReLU + L1: L0 0.6 0.30, 50%."


def test_nothing_without_the_base() -> None:
    results = planted()
    others = results.table[results.table["part"] != "base"]
    assert scale.answer(Results(others, NONE)) == ""


def test_trials_are_told_from_the_best() -> None:
    first = planted().table.query("part == 'wide'")
    second = first.assign(lr=2 * first["lr"], fvu=0.9 * first["fvu"])
    columns, *rows = scale.answer(Results(pd.concat([first, second]), NONE)).splitlines()
    assert columns.split() == ["cell", "lr", "threshold_lr", "activation", "kernel", "fvu"]
    assert len(rows) == 2 * len(CELLS)
    assert scale.figures(Results(first.assign(part="cells-100"), NONE)) == {}
    best, other = (float(row.split()[-1]) for row in rows[:2])
    assert best == pytest.approx(0.9 * other, rel=1e-4)


def test_a_column_of_panels_for_each_part() -> None:
    drawn = scale.figures(planted())
    titles = {name: [axes.get_title() for axes in drawn[name].axes[:2]] for name in scale.CAPTIONS}
    assert titles["frontiers"] == ["base", "layer-5"]
    assert titles["width"] == ["base", "wide"]
    assert len(drawn["effects"].axes) == 2
