"""Kernel shape and bandwidth: what is trained and measured, and what the answer makes of it."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ablations import _bandwidths, _kernel_shapes, kernels
from ablations._threshold_measures import theta_of
from ablations._threshold_training import FVU, SHARE, decided
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
from tests.ablations.kernel_tables import (
    ARMS,
    COLUMNS,
    NONE,
    PARTS,
    STUDY,
    as_dense,
    nothing,
    planted,
)
from tests.grids import tensor_cache

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
    outcomes = kernels.contrasts(results).groupby("outcome")["contrast"].nunique()
    assert outcomes.to_dict() == {FVU.name: 3, SHARE.name: 3}


def test_shapes_are_drawn_against_the_rectangle() -> None:
    """Planted: an effect of width, which is none at equal deviation."""
    results = planted("shapes", lambda arm: wide(arm.slots["kernel"].kernel), as_dense)
    panels = kernels.figures(results)["relative_fvu_vs_l0"].axes
    for axes, size in zip(panels, (100 * (math.sqrt(12) ** 0.1 - 1), 0), strict=True):
        drawn = {str(line.get_label()): line for line in axes.lines}
        assert set(SHAPES) - set(drawn) == {"Rectangle"}
        assert drawn["Gaussian"].get_ydata() == pytest.approx(size, abs=0.3)


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
    assert set(drawn) == set(kernels.CAPTIONS)
    results.publish("kernels", tmp_path)
    assert kernels.answer(Results.published("kernels", tmp_path)) == said


@pytest.mark.parametrize("part", ["shapes", "bandwidth"])
def test_one_part_alone(results: Results, part: str) -> None:
    further = {key: rows[rows["part"] == part] for key, rows in results.further.items()}
    alone = Results(results.table[results.table["part"] == part], NONE, further)
    assert ("Kernel shape" in kernels.answer(alone)) == (part == "shapes")
    assert len(kernels.figures(alone)) == {"shapes": 1, "bandwidth": 4}[part]
