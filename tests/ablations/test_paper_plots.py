"""How the curves of a run and of the paper are drawn: bars of intervals, axes of their own."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from ablations._paper_figures import COLUMNS, FIGURES, JUMP, paper_points
from ablations._paper_plots import BEHIND, RUN, TINY, draw

LOSS, SHARES = (next(each for each in FIGURES if each.number == number) for number in (10, 5))


def points(number: int, measure: str, **values: object) -> pd.DataFrame:
    """One curve of JumpReLU in the first panel."""
    kept = {"figure": number, "place": 0, "layer": 6, "measure": measure, "series": JUMP.key}
    return pd.DataFrame(kept | values, index=range(3)).reindex(columns=COLUMNS)


def bars_of(axes: Axes) -> list[np.ndarray]:
    found = [each for each in axes.collections if isinstance(each, LineCollection)]
    return [segment for each in found for segment in each.get_segments()]


def test_an_interval_is_a_bar_that_does_not_stretch_the_axes() -> None:
    curve = points(10, "delta_lm_loss", site="mlp", x=[10.0, 30, 90], y=[0.03, 0.02, 0.01]).assign(
        low=[0.02, -0.01, np.nan], high=[0.04, 500.0, np.nan]
    )
    shown, *_ = draw(LOSS, {RUN: curve}).axes
    bare, *_ = draw(LOSS, {RUN: curve.assign(low=np.nan, high=np.nan)}).axes
    assert shown.get_ylim() == pytest.approx(bare.get_ylim())
    first, second = bars_of(shown)
    assert first.tolist() == [[10, 0.02], [10, 0.04]]
    assert second.tolist() == [[30, TINY], [30, 500]]
    assert np.isfinite(shown.transData.transform(second)).all()


def test_shares_of_other_widths_have_their_axis() -> None:
    """A latent's mean frequency is L0 / width: the paper's shares are about 1,000 times lower."""
    curve = points(5, "above_10pct", site="resid", x=[0.1, 0.2, 0.3], y=[40.0, 20, 1])
    drawn = draw(SHARES, {BEHIND: paper_points(), RUN: curve})
    assert len(drawn.axes) == 2 * 6
    own, paper = drawn.axes[0], drawn.axes[6]
    assert [line.get_label() for line in own.lines] == ["JumpReLU"]
    assert {line.get_label() for line in paper.lines} >= {"JumpReLU, paper"}
    assert own.get_ylim()[1] > 40
    assert paper.get_ylim()[1] < 0.1
    assert paper.get_ylabel() == "paper"
    assert len(draw(SHARES, {RUN: curve}).axes) == 6
