"""The figures of the JumpReLU paper without a run: its own points, and the presets that would trace
them."""

from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure

from ablations import paper
from ablations._paper_figures import BARS, CURVES, FIGURES, FIVE, KINDS, paper_points, ratios
from ablations._paper_sites import over_sites
from architectures.topk import AuxK
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.penalties import L0
from sae_bench.plots import COLOURS, MARKERS

PRESET = paper.PRESETS["smollm2"]
POINTS = paper_points()
BY_NUMBER = {figure.number: figure for figure in FIGURES}


@pytest.fixture(scope="module")
def reference() -> dict[str, Figure]:
    return paper.reference()


# -- the paper's points ---------------------------------------------------------------------------


def test_every_curve_of_the_paper_has_its_panel(reference: dict[str, Figure]) -> None:
    """Whatever is in the file is drawn, and every panel but those that were not read has curves."""
    for figure in FIGURES:
        here = POINTS[POINTS["figure"] == figure.number]
        assert set(here["series"]) == {series.paper for series in figure.series if series.paper}
        assert set(here["place"]) == set(figure.places)
        panels = {(row.site, row.y.column) for row in figure.rows}
        assert set(zip(here["site"], here["measure"], strict=True)) == panels
        lines = [line for axes in reference[figure.name].axes for line in axes.lines]
        assert sum(len(line.get_xdata()) for line in lines) == len(here)
        assert all((np.diff(line.get_xdata()) > 0).all() for line in lines)
    assert POINTS.drop(columns=BARS).notna().all().all()
    assert POINTS.groupby("place")["layer"].unique().map(list).to_dict() == {
        0: [9],
        1: [20],
        2: [31],
    }


def test_source_and_licence_stand_at_the_head_of_the_points() -> None:
    head = [line for line in CURVES.read_text().splitlines() if line.startswith("#")]
    assert all(words in " ".join(head) for words in ("arXiv 2407.14435", "CC BY 4.0"))


@pytest.mark.parametrize(
    ("series", "facts"),
    [
        ("TopK (AuxK)", (1.36, 1.07, 1.11)),
        ("Gated (Original)", (1.16, 1.42, 1.31)),
        ("Gated (RI-L1)", (1.30, 1.46, 1.36)),
        ("JumpReLU", (1, 1, 1)),
    ],
)
def test_loss_ratios_at_l0_50(series: str, facts: tuple[float, ...]) -> None:
    """Facts are of straight lines between the points, log-log; the curves of `ratios` are monotone
    cubics."""
    here = POINTS[POINTS["figure"] == 2]
    at = [
        [
            np.interp(np.log(50), *np.log(curve.sort_values("x")[["x", "y"]].to_numpy(float)).T)
            for _, curve in here[here["series"] == name].groupby("place")
        ]
        for name in (series, "JumpReLU")
    ]
    assert np.exp(np.subtract(*at)) == pytest.approx(facts, abs=0.0051)
    assert ratios(POINTS, 2).loc[series].to_numpy() == pytest.approx(facts, rel=0.01)


def test_ri_l1_has_no_frequent_latents() -> None:
    frequent = POINTS[POINTS["measure"] == "above_10pct"]
    by_series = frequent.groupby("series")["y"].max()
    assert by_series["Gated (RI-L1)"] == 0
    assert (by_series.drop("Gated (RI-L1)") > 0.005).all()
    assert (POINTS["y"] >= 0).all()


def test_the_gated_curve_of_figure_16_has_the_l0_of_the_original() -> None:
    """What `paper_points` warns of."""
    gated = POINTS[POINTS["series"].str.startswith("Gated") & (POINTS["site"] == "resid")]
    l0 = {
        key: np.sort(rows["x"].to_numpy())
        for key, rows in gated[gated["place"] == 1].groupby(["figure", "series"])
    }
    assert l0[16, "Gated (RI-L1)"] == pytest.approx(l0[12, "Gated (Original)"], rel=0.01)
    assert l0[16, "Gated (RI-L1)"] != pytest.approx(l0[12, "Gated (RI-L1)"], rel=0.05)


def test_the_papers_order_over_sites() -> None:
    """Its text: JumpReLU is at least as good as Gated and TopK."""
    found = over_sites(POINTS, (2, 10, 11), 50)
    assert set(found) == {"Gated (Original)", "Gated (RI-L1)", "JumpReLU", "TopK (AuxK)"}
    assert {len(each) for each in found.values()} == {9}
    assert not found["JumpReLU"].any()
    assert all(each.mean() > 0 for name, each in found.items() if name != "JumpReLU")


def test_axes_are_those_of_the_paper(reference: dict[str, Figure]) -> None:
    for number in (2, 10, 11):
        drawn = reference[f"figure_{number:02d}"]
        assert len(drawn.axes) == 3
        for axes in drawn.axes:
            assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [axes.get_title() for axes in drawn.axes] == ["Layer 9", "Layer 20", "Layer 31"]
    assert len(reference["figure_12"].axes) == len(reference["figure_16"].axes) == 9
    top, bottom = BY_NUMBER[5].rows
    assert (top.y.column, bottom.y.column) == ("above_10pct", "above_1pct")


def test_an_architecture_has_its_colour() -> None:
    names = ("Gated", "GatedRIL1", "JumpReLU", "TopK", "ReLU")
    for series, name in zip(FIVE, names, strict=True):
        assert series.look == (COLOURS[name], MARKERS[name], "-")
    for figure in FIGURES:
        assert len({series.look.color for series in figure.series}) == len(figure.series)


# -- the preset -----------------------------------------------------------------------------------


def test_nine_sites_and_the_variants() -> None:
    parts = PRESET.parts()
    assert len(parts) == 10
    made = {name: paper.arms(part) for name, part in parts.items()}
    assert {len(arms) for name, arms in made.items() if name != "variants"} == {25}
    assert len(made["variants"]) == 30 + 4 * 5
    for arms in made.values():
        assert len({arm.key for arm in arms}) == len(arms)
        assert not any(arm.objection for arm in arms)
        assert all(arm.ends_warm for arm in arms)
    assert parts["variants"].data.site == "layers.14.resid_post"
    assert not {arm.key for arm in made["variants"]} & {
        arm.key for arm in made["layers.14.resid_post"]
    }


def test_penalties_are_stronger_where_more_latents_fire() -> None:
    parts = PRESET.parts()
    resid, mlp = (
        [arm.slots for arm in paper.arms(parts[f"layers.6.{kind}"])]
        for kind in ("resid_post", "mlp_out")
    )
    ratios = {"L0": 3, "L1": 3**0.5, "RIL1": 3**0.5}
    for one, other in zip(resid, mlp, strict=True):
        if (kind := one["penalty"].kind) == "NoPenalty":
            assert one == other
        else:
            ratio = other["penalty"].coefficient / one["penalty"].coefficient
            assert ratio == pytest.approx(ratios[kind], rel=0.01)


def test_the_papers_setting() -> None:
    """arXiv 2407.14435; specification of the recipe: Gemma Scope, arXiv 2408.05147."""
    preset = paper.PRESETS["gemma-2-9b"]
    parts, data, recipe = preset.parts(), preset.data, preset.recipe
    sites = [f"layers.{n}.{kind}" for kind in KINDS for n in (9, 20, 31)]
    assert list(parts) == [*sites, "variants"]
    assert parts["variants"].data == parts["layers.20.resid_post"].data
    assert (data.model, data.context.length) == ("google/gemma-2-9b", 1024)
    assert (data.held_out_tokens, data.lm_tokens) == (10_000 * 1024, 2_048 * 1024)
    assert [parts[site].data.width for site in sites] == [3584] * 6 + [4096] * 3
    assert (recipe.steps, recipe.batch_size) == (1_953_125, 4096)
    assert (recipe.betas, recipe.adam_eps) == ((0, 0.999), 1e-8)
    assert (recipe.lr_warmup, recipe.lr_decay, recipe.penalty_warmup) == (1_000, 0, 10_000)
    arms = {arm.key: arm for part in parts.values() for arm in paper.arms(part)}.values()
    assert len(arms) == 24 + 30
    assert not any(arm.objection for arm in arms)
    assert {(arm.d_sae, arm.recipe.lr, arm.recipe.threshold_lr) for arm in arms} == {
        (131_072, 7e-5, 7e-5)
    }
    jumping = [arm.slots for arm in arms if arm.name == "JumpReLU"]
    assert {slots["activation"] for slots in jumping} == {JumpReLU(LogThreshold(1e-3))}
    assert {slots["kernel"].kernel.bandwidth for slots in jumping} == {1e-3}
    assert L0(6e-4) in [slots["penalty"] for slots in jumping]
    assert {slots["penalty"].coefficient for slots in jumping if slots["penalty"].kind != "L0"} == {
        1.0
    }
    ranked = [arm.slots for arm in arms if arm.name == "TopK"]
    assert Counter(slots["aux"] for slots in ranked) == {
        AuxK(k=512, coefficient=1 / 32, dead_after=10_000_000): 6,
        AuxK(coefficient=0): 6,
    }
    ks = sorted({slots["activation"].k for slots in ranked})
    there = POINTS[(POINTS["figure"] == 2) & (POINTS["series"] == "TopK (AuxK)")]
    assert np.sort(there[there["layer"] == 20]["x"]) == pytest.approx(ks, rel=0.03)


def test_the_reference_is_everything_that_needs_no_run(reference: dict[str, Figure]) -> None:
    numbers = (1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 16, 17)
    assert set(reference) == {f"figure_{number:02d}" for number in numbers}
