"""What is committed is what the tables give: differences, and the numbers of the report."""

import math
from pathlib import Path

import pandas as pd
import pytest

from sae_bench import ablation
from sae_bench.results import Results, is_published

PUBLISHED = Path(__file__).parents[1] / "results"
ALL = [name for name in ablation.names() if is_published(name, PUBLISHED)]
KNOWN = [name for name in ALL if ablation.load(name).contrasts is not None]


@pytest.mark.parametrize("name", KNOWN)
def test_contrasts_are_those_of_the_tables(name: str) -> None:
    contrasts = ablation.load(name).contrasts
    assert contrasts is not None
    found = contrasts(Results.published(name, PUBLISHED))
    written = pd.read_csv(PUBLISHED / "contrasts" / f"{name}.csv")
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), written, check_dtype=False, rtol=1e-6, atol=1e-9
    )
    known = found.dropna(subset=["low", "high"])
    assert (known["low"] <= known["mean"]).all()
    assert (known["mean"] <= known["high"]).all()


def test_the_readme_quotes_the_contrasts() -> None:
    """The first answer of the README: main effects in percent."""
    rows = pd.read_csv(PUBLISHED / "contrasts" / "factorial.csv")
    rows = rows[rows["way"].str.contains("theta") & (rows["outcome"] == "FVU at matched L0")]
    means = rows[rows["l0"].isna()].set_index("contrast")["mean"]
    text = (PUBLISHED.parent / "README.md").read_text()
    for contrast in ("A", "B", "together"):
        fall = 100 * (1 - math.exp(means[contrast]))
        assert f"{fall:.1f}%" in text


@pytest.mark.parametrize("name", ALL)
def test_captions_are_of_figures_that_are_drawn(name: str) -> None:
    drawn = {path.stem for path in (PUBLISHED / "figures" / name).glob("*.png")}
    assert set(ablation.load(name).captions) <= drawn
