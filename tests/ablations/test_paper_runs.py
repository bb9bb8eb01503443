"""The figures of the JumpReLU paper as a run draws them: its points, ratios and answer."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablations import _paper_sites, paper
from ablations._paper_figures import (
    FIGURES,
    JUMP,
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
from sae_bench.ablation import Finished
from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError
from sae_bench.plots import COLOURS
from sae_bench.results import Results

PRESET = paper.PRESETS["smollm2"]
POINTS = paper_points()
BY_NUMBER = {figure.number: figure for figure in FIGURES}


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
    assert len(said) == 5 + 3 * (4 + 1) + 1 + 1 + 2 + 3 + 4
    lowest = "  L0 50, JumpReLU has the lowest FVU of all at 0 of 9 sites, at 0 of them by less "
    assert f"{lowest}than 1%." in said
    assert "  figure 8, TopK + AuxK over TopK: 1.00 [0.96], 1.00 [0.97], none [0.96]." in said
    assert "  bandwidth, eps = 0.002 over eps = 0.02: 1.00, 1.00, none." in said
    assert "  L0 50, ReLU + L1: +0.0% [+0.0, +0.0], higher at 0 of 9 sites." in said
    (gated,) = (line for line in said if line.startswith("  L0 50, Gated:"))
    assert "; the paper +6.8% [" in gated


def test_planted_ratios_are_found_at_every_site() -> None:
    points = points_of(TABLE)
    planted = (points["figure"] == 12) & (points["series"] == "TopK (AuxK)")
    points.loc[planted, "y"] *= 1.25
    found = _paper_sites.over_sites(points, (12,), 50)
    assert found["TopK (AuxK)"] == pytest.approx([np.log(1.25)] * 9)
    assert found["Gated (Original)"] == pytest.approx([0.0] * 9)
    rows = _paper_sites.by_sites(points, paper_points())
    rows = rows[(rows["l0"] == 50) & (rows["of"] == "TopK + AuxK")].set_index("way")
    here, there = rows.loc[_paper_sites.HERE], rows.loc[_paper_sites.THERE]
    assert here[["mean", "n", "higher"]].tolist() == pytest.approx([np.log(1.25), 9, 9])
    assert 0 < there["low"] < there["mean"] < there["high"]
    assert set(rows["to"]) == {"JumpReLU"}


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


def test_what_is_not_positive_has_no_place_on_a_logarithmic_axis() -> None:
    points = points_of(TABLE)
    points.loc[points["figure"] == 10, "y"] = -1.0
    for axes in draw(BY_NUMBER[10], {RUN: points}).axes:
        assert axes.get_yscale() == "log"
        for line in axes.lines:
            shown = axes.transData.transform(line.get_xydata())
            assert np.isnan(shown[:, 1]).all()
