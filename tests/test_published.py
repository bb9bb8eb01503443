"""What is committed is what the tables give: differences, and the numbers of the report."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
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


TOLD = re.compile(r"([+-]?[\d.]+)%? \[([+-]?[\d.]+)%?, ([+-]?[\d.]+)%?\]")
"""A mean and its interval in an answer."""


def _spelled(row: Sequence[float]) -> Iterator[tuple[str, ...]]:
    """Mean, low, high in all ways in which answers say them."""
    shares, percent = 100 * np.asarray(row), 100 * np.expm1(row)
    ways = ((percent, "+.1f"), (percent, "+.0f"), (shares, "+.2f"), (shares, ".1f"), (row, "+.3f"))
    for values, form in ways:
        yield tuple(f"{value:{form}}" for value in values)


@pytest.mark.parametrize("name", ALL)
def test_every_interval_that_is_told_has_a_row(name: str) -> None:
    files = (PUBLISHED / "tables").glob(f"{name}_*.csv")
    files = [*files, *(PUBLISHED / "contrasts").glob(f"{name}.csv")]
    columns = ["mean", "low", "high"]
    rows = [table[columns] for table in map(pd.read_csv, files) if {*columns} <= {*table}]
    known = {said for part in rows for row in part.to_numpy(float) for said in _spelled(row)}
    told = set(TOLD.findall(ablation.load(name).answer(Results.published(name, PUBLISHED))))
    assert not told - known


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
