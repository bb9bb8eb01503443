"""The figures of the JumpReLU paper: its points, those of a run, and what both are drawn by."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from ablations import paper
from ablations._paper_figures import (
    BARS,
    CURVES,
    FIGURES,
    FIVE,
    JUMP,
    KINDS,
    RELU,
    RI_L1,
    SITES,
    TOPK,
    paper_points,
    placed,
    points_of,
    ratios,
)
from ablations._paper_plots import BEHIND, RUN, draw
from ablations._paper_runs import bandwidths, figures_of_run
from architectures.topk import AuxK
from sae_bench.ablation import Finished
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError
from sae_bench.penalties import L0
from sae_bench.plots import COLOURS, MARKERS
from sae_bench.results import Results

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


# -- a run's --------------------------------------------------------------------------------------


def made_up() -> pd.DataFrame:
    """What the preset would give with two seeds: log delta LM loss = -log L0 + that of the line."""
    preset, rows = PRESET.replace(seeds=(0, 1), settings=(1, 2, 3)), []
    for part, settings in preset.parts().items():
        for index, arm in enumerate(paper.arms(settings)):
            l0 = (120.0, 60.0, 30.0)[index // 2 % 3] * (1 + 0.1 * arm.seed)
            extra = {"Gated": 2.0, "GatedRIL1": 3.0, "TopK": 1.5, "ReLU": 4.0}.get(arm.name, 1.0)
            rows.append(
                {**arm.columns(), "part": part, "site": settings.data.site, "status": "trained"}
                | {"l0": l0, "fvu": 1 / l0, "delta_lm_loss": extra / l0, "dead": 0.25}
                | {"above_1pct": 0.5, "above_10pct": 0.125, "eval_set": "held-out"}
            )
            rows[-1]["arm"] = f"{part}/{arm.key}"
    return pd.DataFrame(rows)


TABLE = made_up()


def test_points_are_means_over_seeds_in_the_figures_units() -> None:
    points = points_of(TABLE)
    assert set(points["figure"]) == {2, 5, 10, 11, 12, 13}
    assert points.groupby(["figure", "site", "place", "measure", "series"]).size().eq(3).all()
    loss = points[(points["figure"] == 2) & (points["series"] == "JumpReLU")]
    assert sorted(loss["x"].unique()) == pytest.approx([31.5, 63, 126])
    assert loss["layer"].tolist() == [6] * 3 + [14] * 3 + [22] * 3
    assert set(points[points["measure"] == "dead"]["y"]) == {25.0}
    assert set(points[points["measure"] == "above_10pct"]["y"]) == {12.5}
    assert len(points[points["figure"] == 12]) == 3 * 3 * 5 * 3


def test_relu_has_a_curve_where_the_paper_has_none() -> None:
    points = points_of(TABLE)
    relu = points[points["series"] == RELU.key]
    assert set(relu["figure"]) == {2, 5, 10, 11, 12, 13}
    assert RELU.key not in set(POINTS["series"])
    for number in sorted(set(relu["figure"])):
        figure = BY_NUMBER[number]
        drawn = draw(figure, {BEHIND: POINTS, RUN: points})
        for axes in drawn.axes[: 3 * len(figure.rows)]:
            (line,) = (line for line in axes.lines if line.get_color() == COLOURS["ReLU"])
            assert (line.get_label(), line.get_linestyle()) == ("ReLU + L1", "-")


def test_one_curve_a_bandwidth() -> None:
    table = TABLE.assign(recon_loss=TABLE["fvu"])
    (figure,) = bandwidths(table)
    assert [series.name.split(" = ")[1] for series in figure.series] == [
        "0.02",
        "0.002",
        "0.006",
        "0.06",
        "0.2",
    ]
    points = points_of(table, [figure])
    assert points.groupby("series", sort=False).size().tolist() == [3, 3, 3, 3, 3]
    (axes,) = draw(figure, {RUN: points}).axes
    colours = [line.get_color() for line in axes.lines]
    assert colours[0] == COLOURS["JumpReLU"]
    assert len(set(colours)) == 5
    assert not list(bandwidths(table[table["part"] != "variants"]))


def test_other_bandwidths_are_in_no_other_figure() -> None:
    swept = TABLE["kernel"].str.contains(r"Rectangle\(0\.(?:002|006|06|2)\)", na=False)
    assert swept.sum() == 4 * 3 * 2
    table = TABLE.assign(recon_loss=TABLE["fvu"])
    pd.testing.assert_frame_equal(points_of(table), points_of(table[~swept]))


def test_variants_are_told_apart() -> None:
    points = points_of(TABLE.assign(recon_loss=TABLE["fvu"], r_l0=0.5))
    for number in (8, 9, 17):
        here = points[points["figure"] == number]
        drawn = {series.key for series in BY_NUMBER[number].series if series.line}
        assert Counter(here["series"]) == dict.fromkeys(drawn, 3)
        assert set(here["layer"]) == {14}
    sixteen = points[points["figure"] == 16]
    assert set(sixteen["site"]) == set(SITES)
    assert set(sixteen["series"]) == {"Gated", *(s.key for s in (RI_L1, JUMP, TOPK, RELU))}


def test_planted_ratios_are_found() -> None:
    found = ratios(points_of(TABLE), 10)
    values = {"Gated (Original)": 2.0, "Gated (RI-L1)": 3.0, "TopK (AuxK)": 1.5}
    for series, value in values.items():
        assert found.loc[series].to_numpy() == pytest.approx(value, rel=0.01)
    assert ratios(points_of(TABLE), 10, l0=500).isna().all().all()
    assert ratios(points_of(TABLE[TABLE["architecture"] == "TopK"]), 10).empty


def test_one_layer_stands_in_the_middle_and_four_are_refused() -> None:
    one = TABLE[TABLE["site"].str.startswith("layers.14.")]
    assert set(placed(one)["place"]) == {1}
    more = TABLE.assign(site="layers.3.resid_post")
    with pytest.raises(InputError, match="3 layers, the run 4") as caught:
        points_of(pd.concat([TABLE, more]))
    assert "\n" not in str(caught.value)


def test_other_arms_and_sites_are_left_out() -> None:
    other = TABLE.assign(kernel="BatchKDE(Rectangle(0.02), to_input=True)", site="embed")
    other.loc[::2, "site"] = "layers.14.resid_post"
    other = other[other["architecture"] == "JumpReLU"]
    pd.testing.assert_frame_equal(points_of(pd.concat([TABLE, other])), points_of(TABLE))


def test_own_curves_over_the_papers() -> None:
    drawn = draw(BY_NUMBER[2], {BEHIND: POINTS, RUN: points_of(TABLE)})
    assert [axes.get_title() for axes in drawn.axes] == [
        "Layer 6 (paper: 9)",
        "Layer 14 (paper: 20)",
        "Layer 22 (paper: 31)",
    ]
    lines = {line.get_label(): line for line in drawn.axes[0].lines}
    own, behind = lines["JumpReLU"], lines["JumpReLU, paper"]
    assert own.get_color() == behind.get_color() == COLOURS["JumpReLU"]
    assert (own.get_linestyle(), behind.get_linestyle()) == ("-", "--")
    assert behind.get_alpha() < 1
    assert drawn.axes[0].lines.index(behind) < drawn.axes[0].lines.index(own)


def test_figures_and_answer_of_a_run() -> None:
    recon = TABLE[["part", "arm", "eval_set"]].assign(recon_loss=TABLE["fvu"])
    rates = TABLE[["part", "arm", "eval_set"]].assign(frequency=[[0.5, 0.01, 0.0]] * len(TABLE))
    results = Results(TABLE, rates, {"reconstruction": recon})
    drawn = paper.figures(results)
    numbers = (1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 17)
    assert set(drawn) == {f"figure_{number:02d}" for number in numbers} | {"bandwidth"}
    said = paper.answer(results).splitlines()
    assert said[1].startswith(
        "  Residual: Gated 2.00 [1.16], 2.00 [1.41], 2.00 [1.31]; Gated RI-L1"
    )
    assert said[1].endswith("; ReLU + L1 4.00, 4.00, 4.00.")
    assert len(said) == 5 + 3 * 4 + 1 + 1 + 2 + 3 + 4
    assert "  figure 8, TopK + AuxK over TopK: 1.00 [0.96], 1.00 [0.97], none [0.96]." in said
    assert "  bandwidth, eps = 0.002 over eps = 0.02: 1.00, 1.00, none." in said
    assert "  L0 50, ReLU + L1: +0.0% [+0.0, +0.0], higher at 0 of 9 sites." in said
    (gated,) = (line for line in said if line.startswith("  L0 50, Gated:"))
    assert "; the paper +6.8% [" in gated


def test_the_papers_order_over_sites() -> None:
    """Its text: JumpReLU is at least as good as Gated and TopK."""
    found = paper.over_sites(POINTS, (2, 10, 11))
    assert set(found) == {"Gated (Original)", "Gated (RI-L1)", "JumpReLU", "TopK (AuxK)"}
    assert {len(each) for each in found.values()} == {9}
    assert not found["JumpReLU"].any()
    assert all(each.mean() > 0 for name, each in found.items() if name != "JumpReLU")


def test_planted_ratios_are_found_at_every_site() -> None:
    points = points_of(TABLE)
    planted = (points["figure"] == 12) & (points["series"] == "TopK (AuxK)")
    points.loc[planted, "y"] *= 1.25
    found = paper.over_sites(points, (12,))
    assert found["TopK (AuxK)"] == pytest.approx([np.log(1.25)] * 9)
    assert found["Gated (Original)"] == pytest.approx([0.0] * 9)
    assert paper._found(found["TopK (AuxK)"]).endswith("higher at 9 of 9 sites")


def test_variants_alone() -> None:
    """No histograms: none of the compared lines is there."""
    table = TABLE[TABLE["part"] == "variants"].assign(recon_loss=0.5)
    rates = table[["arm", "eval_set"]].assign(frequency=[[0.5, 0.0]] * len(table))
    drawn = figures_of_run(Results(table, rates))
    assert set(drawn) == {"figure_08", "figure_09", "figure_17", "bandwidth"}


def test_released_saes_have_curves_of_their_own() -> None:
    """In the colour of their architecture, and another one where that is taken at a site."""
    rows = TABLE[(TABLE["part"] == "layers.14.resid_post") & (TABLE["architecture"] == "JumpReLU")]
    own = {"status": "released", "penalty": "NoPenalty", "seed": float("nan"), "kernel": ""}
    wide, narrow = (
        rows.assign(**own, series=f"theirs: JumpReLU, {d_sae} latents") for d_sae in (9, 4)
    )
    narrow = narrow.assign(arm=narrow["arm"] + "-narrow")
    late = narrow.assign(part="layers.22.resid_post", site="layers.22.resid_post", series="z")
    table = pd.concat([TABLE, wide, narrow, late])
    rates = table[["part", "arm", "eval_set"]].assign(frequency=[[0.5, 0.01]] * len(table))
    drawn = figures_of_run(Results(table, rates))
    lines = {line.get_label(): line for line in drawn["figure_02"].axes[1].lines}
    first, second = (lines[f"theirs: JumpReLU, {d_sae} latents"] for d_sae in (4, 9))
    assert first.get_color() == lines["JumpReLU"].get_color() == COLOURS["JumpReLU"]
    assert second.get_color() not in COLOURS.values()
    (third,) = (line for line in drawn["figure_02"].axes[2].lines if line.get_label() == "z")
    assert third.get_color() == COLOURS["JumpReLU"]
    assert len({first.get_marker(), second.get_marker(), lines["JumpReLU"].get_marker()}) == 3
    _, labels = drawn["figure_14"].axes[1].get_legend_handles_labels()
    assert sum(label.startswith("theirs") for label in labels) == 2


def test_reconstruction_loss_is_of_the_second_moment(tmp_path: Path) -> None:
    """x = (3, z), z of variance 1 about 0: a tenth of E||x||^2 is variance."""
    z = torch.tensor([1.0, -1.0]).repeat(50)
    cache = ActivationCache.from_tensor(torch.stack([torch.full_like(z, 3.0), z], 1))
    table = pd.DataFrame({"arm": ["a", "b"], "eval_set": "x", "fvu": [0.5, float("nan")]})
    found = paper.reconstruction(Finished(PRESET, table, tmp_path, cache))
    assert list(found["arm"]) == ["a"]
    assert found["recon_loss"].item() == pytest.approx(0.05)


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


def test_what_is_not_positive_has_no_place_on_a_logarithmic_axis() -> None:
    points = points_of(TABLE)
    points.loc[points["figure"] == 10, "y"] = -1.0
    for axes in draw(BY_NUMBER[10], {RUN: points}).axes:
        assert axes.get_yscale() == "log"
        for line in axes.lines:
            shown = axes.transData.transform(line.get_xydata())
            assert np.isnan(shown[:, 1]).all()


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
