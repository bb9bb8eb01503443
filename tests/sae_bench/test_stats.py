import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.stats import bootstrap_ratio, sums_by


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-1000, 1000)), min_size=1, max_size=50))
def test_sums_by_group_against_a_dictionary(rows: list[tuple[int, int]]) -> None:
    groups, values = (np.array(column) for column in zip(*rows, strict=True))
    expected: dict[int, int] = {}
    for group, value in rows:
        expected[group] = expected.get(group, 0) + value
    sums, counts = sums_by(groups, values, np.ones(len(rows), dtype=np.float32))
    assert sums.tolist() == [expected[group] for group in sorted(expected)]
    assert counts.sum() == len(rows)
    assert sums.dtype == np.float64


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(0), 0
    for trial in range(200):
        tokens = generator.integers(20, 200, 60).astype(float)
        level = 0.3 + 0.1 * generator.standard_normal(60)  # one level a document
        low, high = bootstrap_ratio(tokens * level, tokens, seed=trial)
        assert low < high
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize("n", [50, 2_000])
def test_the_interval_is_that_of_normal_theory(n: int) -> None:
    """Ends at the estimate -+ 1.96 standard errors of a ratio of sums (delta method)."""
    generator = np.random.default_rng(1)
    numerator, denominator = generator.random(n), 1 + generator.random(n)
    ratio = numerator.sum() / denominator.sum()
    error = (numerator - ratio * denominator).std() / denominator.mean() / math.sqrt(n)
    low, high = bootstrap_ratio(numerator, denominator)
    assert (low - ratio) / error == pytest.approx(-1.96, rel=0.1)
    assert (high - ratio) / error == pytest.approx(1.96, rel=0.1)


def test_equal_ratios_leave_no_uncertainty() -> None:
    denominator = np.arange(1.0, 30.0)
    low, high = bootstrap_ratio(0.25 * denominator, denominator)
    assert low == pytest.approx(0.25)
    assert high == pytest.approx(0.25)


@pytest.mark.parametrize("n", [0, 1])
def test_one_document_says_nothing_of_the_spread(n: int) -> None:
    low, high = bootstrap_ratio(np.ones(n), np.ones(n))
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_same_seed_gives_the_same_interval_whatever_the_global_state() -> None:
    generator = np.random.default_rng(2)
    numerator, denominator = generator.random(30), 1 + generator.random(30)
    first = bootstrap_ratio(numerator, denominator, seed=5)
    np.random.seed(0)  # noqa: NPY002 (must not matter)
    assert bootstrap_ratio(numerator, denominator, seed=5) == first
    assert bootstrap_ratio(numerator, denominator, seed=6) != first
