"""Kernel shape and bandwidth: what is trained and measured, and what the answer makes of it."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablations import _bandwidths, _kernel_shapes, kernels
from ablations._threshold_measures import theta_of
from ablations._threshold_training import DEAD, SHARE, decided
from ablations._windows import SHAPES, half_window, inside, named
from architectures import JumpReLUSAE
from sae_bench.ablation import Finished
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.arm import Arm
from sae_bench.contrasts import Interval
from sae_bench.estimators import ExactJump, StraightThrough
from sae_bench.files import write_table
from sae_bench.kernels import Gaussian, Kernel, Rectangle, Triangle
from sae_bench.results import Results
from sae_bench.run import run
from tests.grids import tensor_cache

STUDY = kernels.STUDY
PARTS = STUDY.parts()
ARMS = {name: kernels.arms(part) for name, part in PARTS.items()}
WIDTHS = {arm.key for arm in ARMS["bandwidth"]}
COLUMNS = {name: [arm.columns() for arm in arms] for name, arms in ARMS.items()}
NONE = pd.DataFrame()


# -- the grid -------------------------------------------------------------------------------------


def test_shapes_and_bandwidths() -> None:
    shapes, widths = ARMS["shapes"], ARMS["bandwidth"]
    assert (len(shapes), len(widths)) == (105, 273)
    arms = [*shapes, *widths]
    assert len({columns["arm"] for part in COLUMNS.values() for columns in part}) == 378
    assert all(arm.ends_warm and not arm.objection for arm in arms)
    assert all(arm.seed == arm.recipe.data_seed for arm in arms)
    for part in (shapes, widths):
        lines = Counter(arm.slots["kernel"] for arm in part)
        assert len(set(lines.values())) == 1  # no line has more arms than another


def test_seven_kernels_equal_in_bandwidth_or_in_deviation() -> None:
    assert len(set(STUDY.kernels)) == 7
    first, *others = STUDY.kernels
    assert first == Rectangle(0.02)
    equal_eps = [kernel for kernel in others if kernel.bandwidth == first.bandwidth]
    deviations = [kernel.bandwidth * kernel.variance**0.5 for kernel in STUDY.kernels]
    equal_width = [s for s in deviations if math.isclose(s, 0.02 / math.sqrt(12))]
    assert (len(equal_eps), len(equal_width)) == (3, 4)


def test_bandwidths_span_three_decades_around_the_default() -> None:
    widths = sorted({sweep.bandwidth for sweep in STUDY.swept})
    assert np.diff(np.log10(widths)) == pytest.approx(0.5, abs=0.01)
    assert widths[3] == kernels.DEFAULT.bandwidth == _bandwidths.REFERENCE
    assert all(len(sweep.coefficients) == 5 for sweep in STUDY.swept)
    assert len(set(STUDY.swept)) == len(STUDY.swept) == 13


# -- windows --------------------------------------------------------------------------------------


def rank(arm: Arm) -> int:
    """The place of an arm's coefficient among those of its line."""
    line = [sweep for sweep in STUDY.swept if sweep.estimator == arm.slots["kernel"]]
    known = line[0].coefficients if arm.key in WIDTHS else STUDY.coefficients
    return known.index(arm.slots["penalty"].coefficient)


def planted(part: str, effect: Callable[[Arm], float], denser: Callable[[Arm], float]) -> Results:
    """The rows of a part with log FVU = -0.5 log L0 plus an effect; `denser` multiplies L0, which
    falls from 160 to 10. Lines differ in the size of a noise of seeds whose mean is 0."""
    made = []
    for arm, columns in zip(ARMS[part], COLUMNS[part], strict=True):
        l0 = 160 / 2 ** rank(arm) * denser(arm)
        noise = (arm.seed - 1) * 0.004 * math.sin(1 + 50 * arm.slots["kernel"].kernel.bandwidth)
        row = {"part": part, "eval_set": "held-out", "l0": l0, "delta_lm_loss": math.nan}
        row |= {"status": "trained"}
        row |= {"dead": 0.6 * (l0 < 1), "l0_share_above_10pct": 0.5}
        made.append(columns | row | {"fvu": math.exp(-0.5 * math.log(l0) + effect(arm) + noise)})
    return Results(pd.DataFrame(made), NONE)


def nothing(arm: Arm) -> float:
    return 0.0


def as_dense(arm: Arm) -> float:
    return 1.0


def test_kernels_are_read_from_labels() -> None:
    for part in PARTS:
        table = named(planted(part, nothing, as_dense).table)
        for arm, row in zip(ARMS[part], table.itertuples(), strict=True):
            estimator = arm.slots["kernel"]
            assert row.shape == type(estimator.kernel).__name__
            assert row.bandwidth == pytest.approx(estimator.kernel.bandwidth, rel=1e-5)
            width = estimator.kernel.bandwidth * estimator.kernel.variance**0.5
            assert row.deviation == pytest.approx(width, rel=1e-5)
            assert (row.pull == ", exact jump") == ("ExactJump" in estimator.label)


@pytest.mark.parametrize("shape", list(SHAPES.values()))
def test_a_window_is_the_rectangle_of_equal_deviation(shape: type[Kernel]) -> None:
    rectangle = Rectangle.of_width(shape(0.3).bandwidth * shape.variance**0.5)
    assert half_window(shape(0.3)) == pytest.approx(rectangle.bandwidth / 2)


def test_samples_in_windows_are_counted() -> None:
    sae = JumpReLUSAE(2, 2, activation=JumpReLU(LogThreshold(0.5)))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
    first = torch.tensor([[0.41, 0.0], [0.59, 0.48], [0.61, 2.0]])
    counts, below = inside(sae, [first, first + 0.15], 0.1)
    assert counts.tolist() == [[2, 1], [1, 0]]
    assert not below.any()
    around, below = inside(sae, [first, first - 1], 0.55)
    assert around.tolist() == [[3, 2], [0, 1]]
    assert below.tolist() == [[0, 1], [0, 0]]
    kernel = Rectangle(0.2)
    seen = kernel.density((first - 0.5) / kernel.bandwidth) > 0
    assert counts[0].tolist() == seen.sum(0).tolist()


# -- shapes ---------------------------------------------------------------------------------------


def wide(kernel: Kernel) -> float:
    """An effect of width alone: none at that of the rectangle."""
    return 0.1 * math.log(kernel.bandwidth * kernel.variance**0.5 / (0.02 / math.sqrt(12)))


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (lambda arm: 0.0, ("equal", "equal")),
        (lambda arm: wide(arm.slots["kernel"].kernel), ("worse", "equal")),
        (lambda arm: 0.1 * (not isinstance(arm.slots["kernel"].kernel, Rectangle)), ("worse",) * 2),
        (lambda arm: -0.1 * isinstance(arm.slots["kernel"].kernel, Gaussian), ("better",) * 2),
    ],
)
def test_an_effect_of_shape_is_told_from_one_of_width(
    effect: Callable[[Arm], float], words: tuple[str, str]
) -> None:
    results = planted("shapes", effect, as_dense)
    found = _kernel_shapes.effects(named(results.table))
    assert found.groupby(["way", "contrast"])["l0"].count().eq(6).all()
    means = found[found["l0"].isna()]
    gaussian = means[means["contrast"] == "Gaussian"].set_index("way")["mean"]
    said = kernels.answer(results)
    for way, expected in zip(_kernel_shapes.WAYS, words, strict=True):
        line = next(each for each in said.splitlines() if each.startswith(f"  {way}:"))
        assert f"({expected})" in line.split("Gaussian")[1]
        assert (abs(gaussian[way]) > 0.05) == (expected != "equal")
    assert ("Means over L0 lie within 0.00% at equal standard" in said) == (words[1] == "equal")
    assert "So, at equal eps: " in said


def test_shapes_without_a_common_range_have_no_answer() -> None:
    def denser(arm: Arm) -> float:
        return 100.0 if isinstance(arm.slots["kernel"].kernel, Triangle) else 1.0

    said = kernels.answer(planted("shapes", nothing, denser))
    assert "Triangle no common range of L0 (unmeasured)" in said
    assert "there is no interval (no common range of L0, or a single seed) for Triangle." in said
    alone = planted("shapes", nothing, as_dense)
    triangles = alone.table[alone.table["kernel"].str.contains("Triangle")]
    assert "no answer" in kernels.answer(Results(triangles, NONE))


def test_words_of_intervals() -> None:
    calls = {
        "a": Interval(-1, -2, -0.5, 3),
        "b": Interval(1, 0.5, 2, 3),
        "c": Interval(0, -1, 1, 3),
        "d": Interval(1, math.nan, math.nan, 1),
        "e": Interval(-3, -4, -2, 3),
    }
    lower, higher, undecided, unmeasured = decided(calls).split("; ")
    assert lower.endswith("lower with a, e")
    assert higher.endswith("higher with b")
    assert undecided.endswith("for c")
    assert unmeasured.endswith("for d")
    lower, equal, undecided, unmeasured = decided(calls, 1.5).split("; ")
    assert lower.endswith("lower with e")
    assert equal.endswith("with c")
    assert undecided.endswith("for a, b")


# -- bandwidths -----------------------------------------------------------------------------------


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


# -- from end to end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> kernels.Kernels:
    recipe = STUDY.recipe.replace(
        tokens=128, batch_size=32, lr_warmup=1, lr_decay=1, penalty_warmup=2
    )
    return STUDY.replace(
        d_sae=24,
        recipe=recipe,
        share=0.75,
        coefficients=(1e-3, 3e-2),
        swept=tuple(
            kernels.Sweep(eps, (1e-3, 3e-2), pull)
            for eps in (0.02, 0.2)
            for pull in (StraightThrough(), ExactJump())
        ),
        rates=(0.1,),
        kernels=(STUDY.kernels[0], STUDY.kernels[3], STUDY.kernels[6]),
        seeds=(0, 1),
    )


@pytest.fixture(scope="module")
def results(small: kernels.Kernels, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Both parts, a few steps long; checks `windows` against the SAEs on the way."""
    out, cache = tmp_path_factory.mktemp("run"), tensor_cache(d_in=16)
    for name, part in small.parts().items():
        arms = kernels.arms(part)
        table = run(arms, cache, out=out / name, device="cpu")
        finished = Finished(part, table, out / name, cache)
        rows = kernels.seen(finished)
        for arm, row in zip(arms, rows.itertuples(), strict=True):
            theta = theta_of(finished, arm.key)
            assert row.arm == arm.key
            assert row.travel == pytest.approx(np.median(np.abs(np.log(theta / 0.04))))
        (out / name / "further").mkdir()
        write_table(out / name / "further" / "windows.parquet", rows)
    return Results.read(out)


def test_windows_are_measured(results: Results) -> None:
    assert set(results.table["status"]) == {"trained"}
    seen = results.further["windows"]
    assert set(seen["arm"]) == set(results.table["arm"])
    assert seen[["below", "hit", "expected"]].stack().between(0, 1).all()
    assert (seen["travel"] > 0).all()
    table = named(results.table).merge(seen, on="arm")
    swept = table[table["part_x"] == "bandwidth"].groupby("bandwidth")["count"].mean()
    assert (swept.diff().dropna() > 0).all()  # wider windows see more
    assert swept.iloc[-1] > 5 * swept.iloc[0]


def test_the_answer_and_the_figures(results: Results, tmp_path: Path) -> None:
    said = kernels.answer(results)
    assert "Kernel shape, 2 paired seeds" in said
    assert "Bandwidth of the rectangle, 2 paired seeds" in said
    assert "hit expected" in said
    drawn = kernels.figures(results)
    assert set(drawn) == {"fvu_vs_l0", "at_l0_vs_eps", "thresholds_vs_eps", "samples_vs_eps"}
    results.publish("kernels", tmp_path)
    assert kernels.answer(Results.published("kernels", tmp_path)) == said


@pytest.mark.parametrize("part", ["shapes", "bandwidth"])
def test_one_part_alone(results: Results, part: str) -> None:
    further = {key: rows[rows["part"] == part] for key, rows in results.further.items()}
    alone = Results(results.table[results.table["part"] == part], NONE, further)
    assert ("Kernel shape" in kernels.answer(alone)) == (part == "shapes")
    assert len(kernels.figures(alone)) == {"shapes": 1, "bandwidth": 3}[part]
