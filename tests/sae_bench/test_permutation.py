import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sae_bench.errors import InputError
from sae_bench.permutation import Permutation

SEEDS = st.integers(0, 2**63)


@given(n=st.integers(1, 3000), seed=SEEDS)
def test_it_is_a_bijection(n: int, seed: int) -> None:
    values = Permutation(n, seed)(np.arange(n))
    assert np.array_equal(np.sort(values), np.arange(n))


@given(n=st.integers(1, 2**62 - 1), seed=SEEDS, data=st.data())
def test_points_of_huge_ranges_stay_inside_and_distinct(
    n: int, seed: int, data: st.DataObject
) -> None:
    points = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=50, unique=True))
    values = Permutation(n, seed)(np.array(points, dtype=np.int64))
    assert len(set(values.tolist())) == len(points)
    assert values.min() >= 0
    assert values.max() < n


@given(n=st.integers(1, 500), seed=SEEDS, data=st.data())
def test_evaluation_is_point_by_point(n: int, seed: int, data: st.DataObject) -> None:
    at = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    assert np.array_equal(Permutation(n, seed)(at), Permutation(n, seed)(np.arange(n))[at])


def test_the_bits_are_fixed() -> None:
    assert Permutation(10, 0)(np.arange(10)).tolist() == FIXED
    assert Permutation(10, (0, 1))(np.arange(10)).tolist() != FIXED


FIXED = [5, 7, 6, 3, 0, 4, 1, 9, 2, 8]


@pytest.mark.parametrize("n", [1000, 4097, 100_003])
def test_it_looks_random(n: int) -> None:
    """Against what is expected of a uniformly random permutation, 5 standard deviations wide."""
    positions = np.arange(n)
    values = Permutation(n, 7)(positions)
    assert abs(np.corrcoef(positions, values)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(n)
    displacement = np.abs(values - positions) / n
    assert abs(displacement.mean() - 1 / 3) < 5 * np.sqrt(1 / 18 / n)
    assert (values == positions).sum() <= 8  # Poisson(1)

    cells = np.bincount(values[:-1] * 8 // n * 8 + values[1:] * 8 // n, minlength=64)
    assert stats.chisquare(cells).pvalue > 1e-4
    cells = np.bincount(values * 8 // n * 8 + positions * 8 // n, minlength=64)
    assert stats.chisquare(cells).pvalue > 1e-4


def test_all_orders_of_few_things_occur() -> None:
    orders = {tuple(Permutation(3, seed)(np.arange(3))) for seed in range(100)}
    assert len(orders) == 6


def test_seeds_differ() -> None:
    n = 10_000
    shared = Permutation(n, 1)(np.arange(n)) == Permutation(n, 2)(np.arange(n))
    assert shared.sum() <= 8
    shared = Permutation(n, (1, 0))(np.arange(n)) == Permutation(n, (1, 1))(np.arange(n))
    assert shared.sum() <= 8


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (2**62, 0), (5, -1), (5, (1, -1))])
def test_bad_input(n: int, seed: int | tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        Permutation(n, seed)
