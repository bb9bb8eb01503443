"""Curves, bands and effects say what the table says: what was drawn is read back from the axes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from sae_bench import bands, plots


def table(seeds: int = 3) -> pd.DataFrame:
    """Two lines over four settings; y = level / x, shifted from seed to seed."""
    rows = [
        {
            "arm": f"{name}-{x}-{seed}",
            "eval_set": "held-out",
            "line": name,
            "setting": f"{name}-{x}",
            "seed": seed,
            "l0": float(x + seed),
            "fvu": level / x + 0.01 * seed,
        }
        for name, level in (("one", 1.0), ("two", 2.0))
        for x in (10, 20, 40, 80)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def drawn(rows: pd.DataFrame, lines: tuple[str, ...] = ("one", "two")) -> Axes:
    axes = plots.figure().axes[0]
    return bands.bands(rows, axes, x="l0", y="fvu", by="line", lines=bands.ordered(lines))


def test_a_curve_is_the_mean_over_seeds_in_a_band_that_spans_them() -> None:
    axes = drawn(table())
    curve, points = axes.lines[:2]
    assert points.get_label() == "one"
    assert points.get_xdata() == pytest.approx([11, 21, 41, 81])
    assert points.get_ydata() == pytest.approx([0.11, 0.06, 0.035, 0.0225])
    x = np.asarray(curve.get_xdata())
    assert (x[0], x[-1]) == pytest.approx((12, 80))  # where all three seeds have been measured
    corners = axes.collections[0].get_paths()[0].vertices
    y = np.asarray(curve.get_ydata())
    assert corners[:, 1].min() < y.min() < y.max() < corners[:, 1].max()


def against(rows: pd.DataFrame, to: str = "one") -> Axes:
    axes = plots.figure().axes[0]
    lines = {"two": plots.Look("red", "o", "-")}
    return bands.relative(rows, axes, x="l0", y="fvu", by="line", lines=lines, to=to)


def paired() -> pd.DataFrame:
    """y = 1 / x; of line two 10, 20 and 60% more from seed to seed, at other x."""
    rows = table()
    second = rows["line"] == "two"
    l0 = rows["l0"] * np.where(second, 1.5, 1.0)
    excess = np.where(second, rows["seed"].map({0: 1.1, 1: 1.2, 2: 1.6}), 1.0)
    return rows.assign(l0=l0, fvu=excess / l0)


def test_one_line_against_another_seed_by_seed() -> None:
    axes = against(paired())
    curve, points, zero = axes.lines
    assert curve.get_label() == "two"
    assert (curve.get_xdata()[0], curve.get_xdata()[-1]) == pytest.approx((18, 80))
    assert curve.get_ydata() == pytest.approx(30)
    assert points.get_xdata() == pytest.approx([31.5, 61.5], rel=1e-3)  # others lie outside
    assert points.get_ydata() == pytest.approx([30, 30])
    assert list(zero.get_ydata()) == [0, 0]
    ends = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((10, 60))
    assert axes.get_xscale() == "log"


def test_seeds_that_one_line_lacks_are_not_compared() -> None:
    rows = paired()
    rows.loc[(rows["line"] == "one") & (rows["seed"] == 2), "fvu"] = np.nan
    assert against(rows).lines[0].get_ydata() == pytest.approx(15)


@pytest.mark.parametrize("rows", [paired().query("line == 'two'"), table().iloc[:0]])
def test_nothing_to_be_held_against_leaves_the_zero_alone(rows: pd.DataFrame) -> None:
    assert len(against(rows).lines) == 1


def test_lines_without_a_common_range_are_left_out() -> None:
    rows = paired()
    rows["l0"] *= np.where(rows["line"] == "two", 100, 1)
    assert len(against(rows).lines) == 1


def test_colours_go_by_place_and_holes_are_skipped() -> None:
    axes = drawn(table(), ("absent", "two"))
    assert {line.get_color() for line in axes.lines} == {bands.COLOURS[1]}


def test_rows_without_a_place_are_left_out() -> None:
    rows = table(1)
    rows.loc[0, "fvu"] = np.nan
    rows.loc[1, "l0"] = -1.0
    assert len(drawn(rows).lines[1].get_xdata()) == 2


def test_labels_stand_outside_and_apart() -> None:
    rows = table()
    rows["fvu"] = 1 + 1e-4 * rows["fvu"]  # the lines all but coincide
    axes = drawn(rows)
    bands.logarithmic(axes)
    bands.label_ends(axes)
    assert [text.get_text() for text in axes.texts] == ["one", "two"]
    heights = [text.get_position()[1] for text in axes.texts]
    assert abs(heights[1] - heights[0]) >= bands.ROOM - 1e-5
    assert all(text.get_position()[0] > 1 for text in axes.texts)
    assert axes.texts[0].get_color() == bands.COLOURS[0]


def test_effects_are_drawn_with_their_intervals() -> None:
    rows = pd.DataFrame(
        {
            "way": ["w", "w", "v", "v"],
            "contrast": ["A", "B"] * 2,
            "mean": [1.0, 2.0, 3.0, np.nan],
            "low": [0.5, 1.0, 2.0, np.nan],
            "high": [1.5, 3.0, 4.0, np.nan],
        }
    )
    axes = plots.figure().axes[0]
    bands.effects(rows, axes, names={"A": "first", "B": "second"}, by="way")
    first, second = axes.containers
    assert [first.get_label(), second.get_label()] == ["w", "v"]
    assert first.lines[0].get_xdata() == pytest.approx([1.0, 2.0])
    ends = [tuple(segment[:, 0]) for segment in first.lines[2][0].get_segments()]
    assert ends == [pytest.approx((0.5, 1.5)), pytest.approx((1.0, 3.0))]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]


def test_effects_of_one_seed_have_no_bars_and_kinds_do_not_overlap() -> None:
    kinds = ["v", "w", "x", "y"]
    rows = pd.DataFrame(
        {"way": kinds * 2, "contrast": ["A"] * 4 + ["B"] * 4, "mean": 1.0, "low": np.nan}
    ).assign(high=np.nan)
    axes = plots.figure().axes[0]
    bands.effects(rows, axes, names={"A": "first", "B": "second"}, by="way")
    assert not any(each.has_xerr for each in axes.containers)
    places = np.sort(np.concatenate([each.lines[0].get_ydata() for each in axes.containers]))
    assert len(places) == 8
    assert np.diff(places).min() == pytest.approx(0.2)
    assert np.diff(places)[3] > 0.3  # between the contrasts


def test_frequencies_are_interpolated_by_rank() -> None:
    """At the geometric mean of two L0, geometric means of the frequencies of each rank."""
    rows = pd.DataFrame({"l0": [90.0, 10.0], "frequency": [[0.4, 0.1, 0.9], [0.1, 0.0, 0.1]]})
    logs, reached = bands.matched_frequencies(rows, 30.0)
    assert reached == pytest.approx(30)
    assert 10**logs == pytest.approx([0.3, 0.2])  # the third fired in one arm alone
    for l0, own, expected in (
        (90, 90, [0.9, 0.4, 0.1]),
        (500, 90, [0.9, 0.4, 0.1]),
        (2, 10, [0.1] * 2),
    ):
        logs, reached = bands.matched_frequencies(rows, l0)
        assert reached == pytest.approx(own)
        assert 10 ** logs[:2] == pytest.approx(expected[:2])
    logs, reached = bands.matched_frequencies(rows[:1], 30.0)
    assert (len(logs), reached) == (3, pytest.approx(90))


def test_histograms_at_one_l0() -> None:
    rows = table(2)
    rates = [np.full(7, x / 1000, dtype=np.float32) for x in rows["l0"]]
    frequencies = rows[["arm", "eval_set"]].assign(frequency=rates)
    for l0, label in ((38, "one"), (1e4, "one, L0 ")):
        axes = plots.figure().axes[0]
        one = bands.ordered(["one"])
        bands.matched_histogram(rows, frequencies, axes, by="line", lines=one, l0=l0)
        (outline,) = axes.patches
        assert outline.get_label().startswith(label)
        assert (outline.get_label() == "one") == (l0 == 38)
        counts = outline.get_data().values  # type: ignore[attr-defined]
        assert counts.sum() == 7
    assert axes.get_xlabel() == "log10 firing frequency at L0 10000"
