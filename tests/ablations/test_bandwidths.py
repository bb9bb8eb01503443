"""Bandwidths of the rectangle: what the answer makes of planted effects."""

import math

import numpy as np
import pandas as pd
import pytest

from ablations import _bandwidths, kernels
from ablations._threshold_training import DEAD, FVU, SHARE
from ablations._windows import named
from sae_bench.arm import Arm
from sae_bench.results import Results
from tests.ablations.kernel_tables import NONE, as_dense, nothing, planted


def means_of(table: pd.DataFrame) -> pd.Series:
    """Means over places, by way, kind and bandwidth."""
    found = _bandwidths.effects(table)
    found = found[found["l0"].isna()]
    return found.set_index(["way", "against", "bandwidth"])["mean"].sort_index()


def narrow_is_noisy(arm: Arm) -> float:
    """FVU rises with the distance of eps from 0.02, half as much with exact jumps."""
    kernel = arm.slots["kernel"]
    exact = 0.5 if "ExactJump" in kernel.label else 1.0
    return 0.1 * exact * abs(math.log10(kernel.kernel.bandwidth / 0.02))


def test_the_bandwidth_that_is_best_is_found() -> None:
    results = planted("bandwidth", narrow_is_noisy, as_dense)
    table = _bandwidths.lined(named(results.table))
    found = means_of(table)
    for way in ("at one threshold lr", "each at its own threshold lr"):
        for kind, size in (("straight-through", 0.1), ("exact jump", 0.05)):
            assert found[way, kind, 2e-3] == pytest.approx(size, abs=0.002)
            assert found[way, kind, 0.2] == pytest.approx(size, abs=0.002)
        apart = found[way, _bandwidths.BETWEEN]
        assert apart[0.02] == pytest.approx(0, abs=0.002)
        assert apart[0.2] == pytest.approx(-0.05, abs=0.002)
    said = kernels.answer(results)
    others = "eps 0.00063, eps 0.002, eps 0.0063, eps 0.063, eps 0.2"
    assert f"straight-through: FVU at matched L0 is higher with {others}, eps 0.63." in said
    assert f"exact jump: FVU at matched L0 is higher with {others}." in said
    assert "Threshold lr chosen, by the other seeds: eps 0.00063 " in said


def test_bandwidths_are_drawn_against_the_default_of_their_pull() -> None:
    results = planted("bandwidth", narrow_is_noisy, as_dense)
    panels = kernels.figures(results)["bandwidths_relative_fvu_vs_l0"].axes
    for axes, size in zip(panels, (0.1, 0.05), strict=True):
        drawn = {str(line.get_label()): line for line in axes.lines}
        assert "eps 0.02" not in drawn
        for eps in ("eps 0.002", "eps 0.2"):
            assert drawn[eps].get_ydata() == pytest.approx(100 * math.expm1(size), abs=0.5)


def test_no_difference_is_said_as_such() -> None:
    said = kernels.answer(planted("bandwidth", nothing, as_dense))
    sentences = [line for line in said.splitlines() if line.startswith("  So, each at its own")]
    assert len(sentences) == 3
    assert all("differs by less than 0.5%" in each for each in sentences)
    assert not any("lower" in each or "higher" in each for each in sentences)


def test_a_bandwidth_at_its_own_rate() -> None:
    """The narrowest window gains at the largest rate: it is compared there."""

    def effect(arm: Arm) -> float:
        narrow = arm.slots["kernel"].kernel.bandwidth == 6.3e-4
        return 0.1 * narrow * (1 if arm.recipe.threshold_lr != 0.1 else -1)

    results = planted("bandwidth", effect, as_dense)
    table = _bandwidths.lined(named(results.table))
    found = means_of(table)
    kind = "straight-through"
    assert found["at one threshold lr", kind, 6.3e-4] == pytest.approx(0.1, abs=0.005)
    assert found["each at its own threshold lr", kind, 6.3e-4] == pytest.approx(-0.1, abs=0.005)
    said = kernels.answer(results)
    assert "eps 0.00063, eps 0.00063, exact jump chose the highest that was tried" in said
    at = _bandwidths.at_rates(table).groupby(["line", "rate"])["apart"].mean()["eps 0.00063"]
    assert at.to_dict() == pytest.approx({0.01: 0.1, 0.03: 0.1, 0.1: -0.1}, abs=0.005)
    at = _bandwidths.at_rates(table).groupby(["line", "rate"])["apart"].mean()["eps 0.02"]
    assert at.to_dict() == pytest.approx({0.01: 0, 0.03: 0, 0.1: 0}, abs=1e-9)
    rows = kernels.contrasts(results)
    rows = rows[(rows["way"] == _bandwidths.OWN_L0) & (rows["bandwidth"] == 6.3e-4)]
    rows = rows[(rows["outcome"] == FVU.name) & (rows["against"] == kind)]
    by_rate = rows.set_index("threshold_lr")["mean"].to_dict()
    assert by_rate == pytest.approx({0.01: 0.1, 0.03: 0.1, 0.1: -0.1}, abs=0.005)


def test_frequent_and_dead_latents_are_compared_at_one_rate() -> None:
    """Both differ by eps, and by rate, which is not looked at."""
    table = named(planted("bandwidth", nothing, as_dense).table)
    step = np.log10(table["bandwidth"] / 0.02) + 5 * ~np.isclose(table["threshold_lr"], 0.03)
    lined = _bandwidths.lined(table.assign(l0_share_above_10pct=0.5 - 0.1 * step, dead=0.1 * step))
    for outcome, size in ((SHARE, -0.1), (DEAD, 0.1)):
        found = _bandwidths.effects(lined, outcome)
        assert set(found["way"]) == {"at one threshold lr"}
        found = found[found["l0"].isna()].set_index(["against", "bandwidth"])["mean"]
        assert found["straight-through", 0.2] == pytest.approx(size)
        assert found["exact jump", 2e-3] == pytest.approx(-size)
        assert found[_bandwidths.BETWEEN, 2e-3] == pytest.approx(0, abs=1e-12)
    at = _bandwidths.at_rates(lined, SHARE).groupby(["line", "rate"])["apart"].mean()
    assert at["eps 0.2"].to_dict() == pytest.approx({0.01: -0.6, 0.03: -0.1, 0.1: -0.6})
    said = _bandwidths.described(lined, NONE)
    assert "    share of L0 above 10%, eps 0.2: 0.01 -60.00 [" in said
    assert "    share of L0 above 10%, straight-through: eps 0.00063 +15.02 [" in said
    assert "    dead latents at L0 24, 32, 48: eps " in said


def test_effects_are_means_over_the_same_places_or_told_place_by_place() -> None:
    """eps = 0.2 reaches L0 16 and 24 alone; what failed is said, and its seed left out."""

    def denser(arm: Arm) -> float:
        return 0.15 if arm.slots["kernel"].kernel.bandwidth == 0.2 else 1.0

    results = planted("bandwidth", narrow_is_noisy, denser)
    said = kernels.answer(results)
    line = next(each for each in said.splitlines() if each.startswith("    straight-through: "))
    assert "eps 0.2 does not reach them" in line
    (places,) = {each for each in said.splitlines() if each.startswith("    eps 0.2: L0 16 +10.")}
    assert "L0 24" in places
    assert "L0 32" not in places
    table = results.table
    lost = (table["kernel"] == "BatchKDE(Rectangle(0.002))") & (table["seed"] == 1)
    first = table.index[lost][:1]
    table.loc[first, ["l0", "fvu"]] = math.nan
    table["status"] = np.where(table.index.isin(first), "failed", "trained")
    said = kernels.answer(results)
    assert "bandwidth: Diverged: BatchKDE(Rectangle(0.002)) 1 of " in said
    assert "Ran away (over 50% of the latents dead): none." in said
    gone = results.table.assign(dead=0.9 * (table["kernel"] == "BatchKDE(Rectangle(0.002))"))
    ran = "Ran away (over 50% of the latents dead): eps 0.002 "
    assert ran in kernels.answer(Results(gone, NONE))
    assert "Left out, since they lack arms: BatchKDE(Rectangle(0.002)), seed 1." in said
    found = _bandwidths.effects(_bandwidths.lined(kernels._part(results, "bandwidth")))
    assert set(kernels.contrasts(results)["against"]) == set(found["against"])
    counts = found[found["against"] == "straight-through"].groupby("bandwidth")["n"].max()
    assert counts[2e-3] == 2
    assert counts[6.3e-3] == 3


def test_a_line_that_is_lost_as_a_whole_is_said() -> None:
    results = planted("bandwidth", nothing, as_dense)
    table = results.table
    lost = table["kernel"] == "BatchKDE(Rectangle(0.002))"
    table.loc[lost, ["l0", "fvu"]] = math.nan
    said = kernels.answer(results)
    (line,) = [each for each in said.splitlines() if "Left out, since they lack arms" in each]
    assert all(f"BatchKDE(Rectangle(0.002)), seed {seed}" in line for seed in (0, 1, 2))
    assert "straight-through: eps 0.00063 " in said


def test_thresholds_that_hardly_move_may_leave_nothing_to_compare() -> None:
    def denser(arm: Arm) -> float:
        return 100.0 if arm.slots["kernel"].kernel.bandwidth < 1e-3 else 1.0

    results = planted("bandwidth", nothing, denser)
    said = kernels.answer(results)
    assert "eps 0.00063 does not reach them" in said
    assert "by the other seeds: eps 0.002 " in said
    drawn = kernels.figures(results)["at_l0_vs_eps"]
    drawn.draw_without_rendering()
