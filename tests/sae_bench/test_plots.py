"""Figures say what the table says: what was drawn is read back from the axes."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from sae_bench import plots

NAN = float("nan")


def row(architecture: str, setting: float, l0: float, fvu: float, **more: Any) -> dict[str, Any]:
    seed = more.get("seed", 0)
    return {
        "arm": f"{architecture}-{setting}-{seed}",
        "architecture": architecture,
        "series": architecture,
        "setting": f"{architecture}-{setting}-{more.get('d_sae')}",
        "dead": 0.0,
        "activation": "ReLU",
        "penalty": "L1",
        "coefficient": setting,
        "kernel": "",
        "d_sae": 100,
        "seed": seed,
        "eval_set": "held-out",
        "l0": l0,
        "fvu": fvu,
        "delta_lm_loss": fvu / 2,
        **more,
    }


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


TWO = table(
    row("ReLU", 0.2, 10.0, 0.3),
    row("TopK", 32, 32.0, 0.1),
    row("ReLU", 0.1, 40.0, 0.2),
    row("TopK", 64, 64.0, 0.05),
)


def empty_axes() -> Axes:
    return plots.figure().axes[0]


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float], str]]:
    """Label -> x, y and colour of each series."""
    return {
        str(container.get_label()): (
            list(container.lines[0].get_xdata()),
            list(container.lines[0].get_ydata()),
            to_hex(container.lines[0].get_color()),
        )
        for container in axes.containers
    }


def bars(axes: Axes, series: int = 0) -> list[tuple[float, float]]:
    """Lower and upper end of each interval of a series."""
    return [
        (segment[0, 1], segment[1, 1])
        for segment in axes.containers[series].lines[2][0].get_segments()
    ]


# --- frontiers ----------------------------------------------------------------------------------


def test_a_frontier_draws_the_table() -> None:
    axes = empty_axes()
    assert plots.frontier(TWO, axes) is axes
    drawn = lines(axes)
    assert list(drawn) == ["ReLU", "TopK"]
    assert drawn["ReLU"][:2] == ([10, 40], [0.3, 0.2])
    assert drawn["TopK"][:2] == ([32, 64], [0.1, 0.05])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert "L0" in axes.get_xlabel()
    assert axes.get_ylabel() == "FVU"
    assert not axes.texts


def test_another_column() -> None:
    axes = plots.frontier(TWO, empty_axes(), y="delta_lm_loss")
    assert lines(axes)["TopK"][1] == [0.05, 0.025]
    assert "LM loss" in axes.get_ylabel()


def test_another_series() -> None:
    both = table(*(row("ReLU", 0.1, 10.0 * d, 1 / d, d_sae=d) for d in (1, 2, 3)))
    drawn = lines(plots.frontier(both, empty_axes(), by="d_sae"))
    assert list(drawn) == ["1", "2", "3"]
    assert len({colour for *_, colour in drawn.values()}) == 3


def test_seeds_are_one_marker_and_a_bar() -> None:
    seeds = table(*(row("ReLU", 0.1, 10.0 + s, 0.2 + 0.1 * s, seed=s) for s in range(3)))
    axes = plots.frontier(seeds, empty_axes())
    x, y, _ = lines(axes)["ReLU"]
    assert x == [11]
    assert y == pytest.approx([0.3])
    assert bars(axes) == [pytest.approx((0.2, 0.4))]


def test_bars_are_the_evaluation_s_intervals_too() -> None:
    rows = [
        row("ReLU", 0.1, 10.0, 0.2, fvu_low=0.15, fvu_high=0.25),
        row("ReLU", 0.1, 10.0, 0.3, fvu_low=0.28, fvu_high=0.45, seed=1),
    ]
    assert bars(plots.frontier(table(*rows), empty_axes())) == [pytest.approx((0.15, 0.45))]
    assert bars(plots.frontier(table(rows[0]), empty_axes())) == [pytest.approx((0.15, 0.25))]


def test_a_bar_never_reaches_zero() -> None:
    rows = table(row("ReLU", 0.1, 10.0, 0.2, fvu_low=-0.1, fvu_high=0.3))
    ((low, high),) = bars(plots.frontier(rows, empty_axes()))
    assert 0 < low < 0.001
    assert high == pytest.approx(0.3)


def test_widths_and_evaluation_sets_are_never_averaged() -> None:
    rows = table(
        row("ReLU", 0.1, 10.0, 0.2),
        row("ReLU", 0.1, 20.0, 0.1, d_sae=200),
        row("ReLU", 0.1, 30.0, 0.3, eval_set="other"),
    )
    assert lines(plots.frontier(rows, empty_axes()))["ReLU"][0] == [10, 20, 30]


def test_an_empty_setting_is_a_setting() -> None:
    """A CSV file gives NaN for an empty string."""
    rows = TWO.assign(kernel=NAN)
    assert lines(plots.frontier(rows, empty_axes())) == lines(plots.frontier(TWO, empty_axes()))


def test_points_without_a_logarithm_are_counted() -> None:
    rows = table(
        row("ReLU", 0.1, 10.0, 0.2),
        row("ReLU", 0.2, 0.0, 1.0),
        row("ReLU", 0.3, 5.0, -0.1),
        row("ReLU", 0.4, NAN, NAN, status="failed"),
    )
    axes = plots.frontier(rows, empty_axes())
    assert lines(axes)["ReLU"][0] == [10]
    assert [text.get_text() for text in axes.texts] == ["not positive, not shown: 2"]


def test_looks_are_stable() -> None:
    known = ("ReLU", "TopK", "Gated", "JumpReLU")
    together = plots.looks([*known, "Mine", "Other"])
    assert len({look.color for look in together.values()}) == 6
    assert plots.looks(["TopK"]) == {"TopK": together["TopK"]}
    assert plots.looks(["Mine", "TopK", "Mine"])["TopK"] == together["TopK"]
    missing = TWO[TWO["architecture"] == "TopK"]
    alone, both = (lines(plots.frontier(rows, empty_axes())) for rows in (missing, TWO))
    assert alone["TopK"] == both["TopK"]


def test_no_two_of_many_series_look_alike() -> None:
    looks = plots.looks([*plots.COLOURS, *(f"series {index}" for index in range(400))])
    assert len(set(looks.values())) == len(looks) == len(plots.COLOURS) + 400


def test_a_long_legend_stands_beside_the_axes() -> None:
    def drawn(count: int) -> Any:
        rows = [row(f"series {index}", 1, 2.0 + index, 0.2) for index in range(count)]
        many = table(*rows).assign(delta_lm_loss=NAN)
        return plots.comparison(many, frequencies(many))["fvu_vs_l0"]

    few, many = drawn(6), drawn(40)
    assert few.axes[0].get_legend() is not None
    assert not few.legends
    assert many.axes[0].get_legend() is None
    (legend,) = many.legends
    many.draw_without_rendering()
    assert len(legend.get_texts()) == 40
    assert legend.get_window_extent().x0 >= many.axes[0].get_window_extent().x1
    assert legend.get_window_extent().y0 >= 0
    assert many.bbox.contains(*legend.get_window_extent().max)
    few.draw_without_rendering()
    inches = [figure.axes[0].get_window_extent().width / figure.dpi for figure in (few, many)]
    assert inches[1] > 0.8 * inches[0]


def test_a_failed_architecture_does_not_change_the_colours() -> None:
    failed = row("Mine", 1, NAN, NAN)
    rows = table(failed, row("Other", 1, 3.0, 0.1))
    assert list(lines(plots.frontier(rows, empty_axes()))) == ["Other"]
    both = table(row("Mine", 1, 2.0, 0.2), row("Other", 1, 3.0, 0.1))
    colour = lines(plots.frontier(both, empty_axes()))["Other"][2]
    assert lines(plots.frontier(rows, empty_axes()))["Other"][2] == colour


# --- histograms ---------------------------------------------------------------------------------


def frequencies(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    drawn = [generator.uniform(-6, 0, 50) for _ in range(len(rows))]
    return rows[["arm", "eval_set"]].assign(
        frequency=[np.r_[0.0, 1.0, 10**logs].astype(np.float32) for logs in drawn]
    )


def test_a_histogram_counts_every_latent_that_fires() -> None:
    rates = frequencies(TWO)
    axes = empty_axes()
    assert plots.frequency_histogram(TWO, rates, axes) is axes
    assert axes.get_yscale() == "log"
    assert len(axes.patches) == 4
    by_l0 = TWO.sort_values("l0")["arm"]
    for patch, arm in zip(axes.patches, by_l0, strict=True):
        data = patch.get_data()  # type: ignore[attr-defined]
        values = rates.loc[rates["arm"] == arm, "frequency"].item()
        assert data.values.sum() == 51
        for bin_ in range(1, 40):
            low, high = data.edges[bin_ : bin_ + 2]
            here = (np.log10(values[1:]) >= low) & (np.log10(values[1:]) < high + (bin_ == 39))
            assert data.values[bin_] == here.sum()
    assert sorted(line.get_xdata()[0] for line in axes.lines) == [-2, -1]
    labels = [text.get_text() for text in axes.legend().get_texts()]
    assert labels == [f"L0 {l0}, dead 0%" for l0 in (10, 32, 40, 64)]


def test_darker_is_larger_l0() -> None:
    axes = plots.frequency_histogram(TWO, frequencies(TWO), empty_axes())
    shades = [patch.get_alpha() for patch in axes.patches]
    assert shades == sorted(shades)
    assert shades[-1] == 1


# --- whole figures ------------------------------------------------------------------------------


def test_the_comparison() -> None:
    drawn = plots.comparison(TWO, frequencies(TWO))
    assert list(drawn) == ["fvu_vs_l0", "delta_lm_loss_vs_l0", "frequency_histograms"]
    assert lines(drawn["fvu_vs_l0"].axes[0])["TopK"][1] == [0.1, 0.05]
    assert lines(drawn["delta_lm_loss_vs_l0"].axes[0])["TopK"][1] == [0.05, 0.025]
    panels = drawn["frequency_histograms"].axes
    assert [axes.get_title() for axes in panels] == ["ReLU", "TopK"]
    assert len({axes.get_ylim() for axes in panels}) == 1


def test_an_odd_number_of_architectures_leaves_no_empty_panel() -> None:
    three = table(*(row(name, 1, 10.0, 0.1) for name in ("ReLU", "TopK", "Gated")))
    panels = plots.comparison(three, frequencies(three))["frequency_histograms"].axes
    assert [axes.get_title() for axes in panels] == ["ReLU", "TopK", "Gated"]


def test_failed_arms_are_not_drawn() -> None:
    failed = row("Gated", 0.1, NAN, NAN, status="failed")
    drawn = plots.comparison(table(*TWO.to_dict("records"), failed), frequencies(TWO))
    assert list(lines(drawn["fvu_vs_l0"].axes[0])) == ["ReLU", "TopK"]
    titles = [axes.get_title() for axes in drawn["frequency_histograms"].axes]
    assert titles == ["ReLU", "TopK"]


def test_without_a_language_model() -> None:
    without = TWO.assign(delta_lm_loss=NAN)
    assert list(plots.comparison(without, frequencies(TWO))) == [
        "fvu_vs_l0",
        "frequency_histograms",
    ]


def test_no_point_has_a_logarithm() -> None:
    """A short run's delta loss may be negative everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.comparison(TWO.assign(delta_lm_loss=-0.1), frequencies(TWO))
    axes = drawn["delta_lm_loss_vs_l0"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["not positive, not shown: 4"]


def test_nothing_was_measured() -> None:
    failed = table(row("ReLU", 0.1, NAN, NAN, delta_lm_loss=NAN))
    assert plots.comparison(failed, frequencies(failed).iloc[:0]) == {}


def test_several_seeds() -> None:
    seeds = table(*(row("ReLU", 0.1, 10.0 + s, 0.2, seed=s) for s in range(3)))
    drawn = plots.comparison(seeds, frequencies(seeds))
    assert lines(drawn["fvu_vs_l0"].axes[0])["ReLU"][0] == [11]
    assert len(drawn["frequency_histograms"].axes[0].patches) == 3


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for attempt in ("first", "second"):
        drawn = plots.comparison(TWO, frequencies(TWO))
        paths = [plots.save(each, tmp_path / attempt, name) for name, each in drawn.items()]
        written.append([path.read_bytes() for pair in paths for path in pair])
        assert [path.suffix for path in paths[0]] == [".png", ".svg"]
    assert written[0] == written[1]
    assert written[0][0].startswith(b"\x89PNG")
    assert b"<svg" in written[0][1]
