import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.projection import NeedsDense, Projection, Reach
from sae_bench.selection import largest_of_all, largest_of_each
from sae_bench.sparse import Deferred, Sparse


def deferred(pre: Tensor, most: float = 1.0) -> Deferred:
    """These pre-activations, as products with the unit matrix."""
    width = pre.shape[1]
    zeros = torch.zeros(width, dtype=pre.dtype)
    return Deferred(
        Projection(pre, torch.eye(width, dtype=pre.dtype), zeros, zeros, Reach(0.0, None, most))
    )


def chosen(f: Tensor) -> Tensor:
    assert isinstance(f, Sparse)
    return f.dense()


def by_sorting(row: list[float], k: int) -> list[float]:
    """The k largest, of equal ones the first; ReLU."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    return [max(value, 0.0) if i in order else 0.0 for i, value in enumerate(row)]


tables = st.integers(1, 40).flatmap(
    lambda width: st.tuples(
        st.lists(
            st.lists(st.integers(-3, 3).map(float), min_size=width, max_size=width),
            min_size=1,
            max_size=5,
        ),
        st.integers(1, width),
    )
)


@given(tables)
def test_the_largest_of_each_row_with_ties(case: tuple[list[list[float]], int]) -> None:
    rows, k = case
    found = chosen(largest_of_each(deferred(torch.tensor(rows)), k))
    assert found.tolist() == [by_sorting(row, k) for row in rows]


@given(tables)
def test_the_largest_of_a_batch_with_ties(case: tuple[list[list[float]], int]) -> None:
    rows, k = case
    found = chosen(largest_of_all(deferred(torch.tensor(rows)), k * len(rows)))
    expected = by_sorting([value for row in rows for value in row], k * len(rows))
    assert found.flatten().tolist() == expected


@pytest.mark.parametrize("width", [5, 64, 517, 2048])
@pytest.mark.parametrize("k", [1, 3, 5, 64])
def test_both_paths_choose_the_same(width: int, k: int) -> None:
    if k > width:
        pytest.skip("there are not so many")
    pre = torch.randn(70, width, generator=torch.Generator().manual_seed(k))
    assert torch.equal(chosen(largest_of_each(deferred(pre), k)), largest_of_each(pre, k))
    assert torch.equal(chosen(largest_of_all(deferred(pre), 70 * k)), largest_of_all(pre, 70 * k))


def test_the_first_tokens_may_mislead() -> None:
    """Those that are looked at first have the largest values by far: a bound from them alone would
    leave out what is needed."""
    pre = torch.rand(100, 50, generator=torch.Generator().manual_seed(0))
    pre[:32] += 5
    assert torch.equal(chosen(largest_of_all(deferred(pre), 4000)), largest_of_all(pre, 4000))


def test_rows_of_values_that_are_no_numbers_stay_inside_their_memory() -> None:
    pre = torch.randn(4, 64)
    pre[1] = torch.nan
    pre[2, ::2] = torch.nan
    for k in (1, 5, 64):
        f = largest_of_each(deferred(pre), k)
        assert isinstance(f, Sparse)
        assert f.support.starts.tolist() == [0, k, 2 * k, 3 * k, 4 * k]
        assert ((f.support.column >= 0) & (f.support.column < 64)).all()


def test_too_large_a_k_never_pays() -> None:
    with pytest.raises(NeedsDense) as caught:
        largest_of_each(deferred(torch.randn(4, 10), most=0.2), 3)
    assert caught.value.lasting
