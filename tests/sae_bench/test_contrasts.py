"""Known effects are found again, intervals have their closed form, nothing is extrapolated."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sae_bench.contrasts import (
    Interval,
    Outcome,
    Square,
    at_each_place,
    common_range,
    compare,
    difference,
    effects,
    interpolate,
    matched,
    t_interval,
)
from sae_bench.errors import InputError

SQUARE = Square("none", "A", "B", "AB")
ON = {"none": (0, 0), "A": (1, 0), "B": (0, 1), "AB": (1, 1)}
Y = Outcome("y", "x", "y at matched x", (1.0, 2.0, 3.0))


def grid(a: float, b: float, both: float, seeds: int = 4, noise: float = 0.0) -> pd.DataFrame:
    """y = seed - 2x + a A + b B + both A B at six places x of each cell and seed, of its own."""
    generator = np.random.default_rng(0)
    rows = []
    for cell, (has_a, has_b) in ON.items():
        for seed in range(seeds):
            for x in np.linspace(0, 4, 6) + generator.uniform(-0.3, 0.3, 6):
                error = noise * generator.standard_normal()
                y = seed - 2 * x + a * has_a + b * has_b + both * has_a * has_b + error
                rows.append({"cell": cell, "seed": seed, "x": x, "y": y, "eval_set": "held-out"})
    return pd.DataFrame(rows)


def found(table: pd.DataFrame) -> dict[str, Interval]:
    rows = compare(table, {"way": SQUARE}, [Y], "cell")
    return {r.contrast: Interval(r.mean, r.low, r.high, r.n) for r in rows.itertuples()}


def test_known_effects_are_recovered() -> None:
    """With lines, interpolation is exact and so are the contrasts; seeds cancel in pairs."""
    effect = found(grid(a=-1.0, b=0.5, both=0.25))
    expected = {
        "A": -1 + 0.125,
        "B": 0.5 + 0.125,
        "interaction": 0.25,
        "together": -0.25,
        "A without B": -1,
        "A with B": -0.75,
        "B without A": 0.5,
        "B with A": 0.75,
    }
    assert set(effect) == set(expected)
    for name, value in expected.items():
        assert effect[name].mean == pytest.approx(value, abs=1e-12)
        assert effect[name].half_width == pytest.approx(0, abs=1e-12)
        assert effect[name].n == 4


def test_noise_makes_intervals_that_hold_the_truth() -> None:
    effect = found(grid(a=-1.0, b=0.0, both=0.0, noise=0.02))
    assert effect["A"].low < -1 < effect["A"].high
    assert effect["A"].excludes_zero
    assert not effect["B"].excludes_zero
    assert not effect["interaction"].excludes_zero


def test_the_interval_has_its_closed_form() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    interval = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (interval.mean, interval.n) == (3.5, 4)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    two = t_interval(np.array([0.0, 2.0]))
    assert two.half_width == pytest.approx(math.tan(0.95 * math.pi / 2))  # a Cauchy quantile


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(3)
    draws = [t_interval(generator.standard_normal(5)) for _ in range(2_000)]
    share = np.mean([each.low <= 0 <= each.high for each in draws])
    assert 0.935 <= share <= 0.965


def test_one_seed_has_no_interval() -> None:
    alone = t_interval(np.array([3.0, math.nan]))
    assert (alone.mean, alone.n) == (3.0, 1)
    assert math.isnan(alone.low)
    assert not alone.excludes_zero
    assert math.isnan(t_interval(np.array([])).mean)


def test_the_margin_is_what_is_missing_to_the_other_side() -> None:
    assert Interval(1.0, 0.25, 1.75, 5).margin == pytest.approx(0.25)
    assert Interval(-0.5, -1.5, 0.5, 5).margin == pytest.approx(0.5)


def test_intervals_in_words() -> None:
    assert Interval(math.log(0.9), math.log(0.8), math.log(1.1), 5).percent() == (
        "-10.0% [-20.0, +10.0]"
    )
    assert Interval(0.1, 0.05, 0.15, 5).points() == "+10.00 [+5.00, +15.00] points"
    assert Interval(-0.05, -0.1, 0.01, 5).nats() == "-0.050 [-0.100, +0.010]"
    assert t_interval(np.array([0.1])).points() == "+10.00 points"  # one value has no interval


def test_interpolation_is_exact_at_the_points_and_monotone_between_them() -> None:
    x, y = np.array([3.0, 0.0, 1.0, 2.0]), np.array([0.0, 9.0, 8.9, 0.1])
    assert interpolate(x, y, x) == pytest.approx(y)
    between = interpolate(x, y, np.linspace(0, 3, 301))
    assert (np.diff(between) <= 1e-12).all()
    assert between.min() >= 0


def test_nothing_is_extrapolated() -> None:
    at = interpolate(np.array([1.0, 2.0]), np.array([5.0, 6.0]), np.array([0.99, 1.5, 2.01]))
    assert np.isnan(at).tolist() == [True, False, True]
    one = interpolate(np.array([1.0]), np.array([5.0]), np.array([1.0]))
    assert np.isnan(one).all()


def test_equal_places_are_averaged_and_holes_left_out() -> None:
    x = np.array([0.0, 1.0, 1.0, 1.5, 2.0])
    y = np.array([0.0, 1.0, 3.0, math.nan, 4.0])
    assert interpolate(x, y, np.array([1.0, 1.5])) == pytest.approx([2.0, 3.0])


def test_places_are_those_that_every_seed_of_every_cell_has() -> None:
    table = grid(0, 0, 0)
    short = table[~((table["cell"] == "B") & (table["seed"] == 2) & (table["x"] > 2.5))]
    low, high = common_range(short, "x", "y", "cell", SQUARE.cells)
    assert low == table.groupby(["cell", "seed"])["x"].min().max()
    assert high < 2.5
    assert Y.places(table, "cell", SQUARE.cells) == [1.0, 2.0, 3.0]
    assert Y.places(short, "cell", SQUARE.cells) == [x for x in (1.0, 2.0, 3.0) if x <= high]
    spread = Outcome("y", "x", "y").places(short, "cell", SQUARE.cells)
    assert low < spread[0] < spread[-1] < high
    assert np.diff(spread) == pytest.approx((high - low) / 6)


def test_effects_look_where_all_seeds_were_measured() -> None:
    """A seed that lacks a place takes it from all, so that every seed is a mean of the same."""
    frame = pd.DataFrame({1.0: [1.0, 3.0], 2.0: [100.0, math.nan]})
    assert effects({"A": frame})["A"].mean == 2.0


def test_cells_without_common_ground_have_no_effect() -> None:
    table = grid(0, 0, 0)
    apart = table.assign(x=table["x"] + 10 * (table["cell"] == "AB"))
    rows = compare(apart, {"way": SQUARE}, [Y], "cell")
    assert set(rows["places"]) == {0}
    assert rows["mean"].isna().all()


def test_every_place_alone() -> None:
    """An effect of A that grows with x is half as large at 1 as at 2; 3 is out of reach."""
    table = grid(0, 0, 0)
    table["y"] += table["x"] * table["cell"].isin(("A", "AB"))
    table = table[table["x"] < 2.9]
    found = at_each_place(table, {"way": SQUARE}, [Y], "cell")
    rows = found[found["contrast"] == "A"].set_index("at")["mean"]
    assert rows[1.0] == pytest.approx(1)
    assert rows[2.0] == pytest.approx(2)
    assert rows[rows.index.isna()].to_numpy() == pytest.approx([1.5])
    assert 3.0 not in rows.index


def test_matched_values_are_by_cell_and_seed() -> None:
    values = matched(grid(1, 0, 0), "x", "y", (1.0, 2.0, 99.0), "cell")
    assert values.loc[("A", 3), 2.0] == pytest.approx(3 - 4 + 1)
    assert values[99.0].isna().all()


def test_bad_tables_are_refused() -> None:
    table = grid(0, 0, 0)
    with pytest.raises(InputError, match="one evaluation set"):
        matched(pd.concat([table, table.assign(eval_set="other")]), "x", "y", (1.0,), "cell")
    with pytest.raises(InputError, match="no rows of 'AB'"):
        SQUARE.contrasts(matched(table[table["cell"] != "AB"], "x", "y", (1.0,), "cell"))


def test_a_difference_of_two_cells_is_paired_over_seeds() -> None:
    rows = [
        {"cell": cell, "seed": seed, "eval_set": "held-out", "x": x, "y": -x + 10 * seed + shift}
        for cell, shift in (("P", 0.5), ("Q", 0.0))
        for seed in range(3)
        for x in (0.0, 1.5, 3.5)
    ]
    found, places = difference(pd.DataFrame(rows), Y, "cell", "P", "Q")
    assert places == [1.0, 2.0, 3.0]
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
