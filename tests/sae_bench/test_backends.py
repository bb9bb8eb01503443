"""Operations of torch find what the compiled loops find: the same entries, in the same order.

Values are small multiples of a quarter, so that sums are exact and ties are frequent.
"""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.backends import BY_DEVICE, LOOPS, OPERATIONS, backend, on_tensors
from tests.elsewhere import DEVICE, Away

Case = tuple[torch.Generator, int, int]

cases = st.builds(
    lambda seed, rows, width: (torch.Generator().manual_seed(seed), rows, width),
    st.integers(0, 10**6),
    st.integers(0, 40),
    st.integers(1, 12),
)
cases_with_numbers = st.tuples(cases, st.integers(1, 20))


def quarters(case: Case, *shape: int, bad: bool = False) -> Tensor:
    """Some of them infinite or no numbers, if `bad`."""
    values = torch.randint(-6, 7, shape, generator=case[0]).float() / 4
    if bad:
        odd = torch.randint(0, 40, shape, generator=case[0])
        for which, value in enumerate((torch.nan, torch.inf, -torch.inf)):
            values[odd == which] = value
    return values


def matrix(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix in CSR form: starts, column, value; many rows are empty."""
    generator, rows, width = case
    kept = torch.rand(rows, width, generator=generator) < torch.rand(rows, 1, generator=generator)
    kept &= torch.rand(rows, 1, generator=generator) < 0.7
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    column = kept.nonzero()[:, 1].int()
    return starts, column, quarters(case, len(column)).to(dtype)


def same(name: str, *args: Any) -> None:
    """Whether both find the same, to the bit and to the type."""
    ours, theirs = (getattr(each, name)(*args) for each in (OPERATIONS, LOOPS))
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (ours, theirs)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@given(cases_with_numbers)
def test_above(both: tuple[Case, int]) -> None:
    case, size = both
    _, rows, width = case
    product, bias = quarters(case, rows, width, bad=True), quarters(case, width)
    same("above", product, bias, quarters(case, max(-(-rows // size), 1), width), size)
    same("above", product, bias, quarters(case, 1, width), max(rows, 1))


@given(cases_with_numbers, st.integers(1, 5))
def test_first_near_ones(both: tuple[Case, int], most: int) -> None:
    case, size = both
    _, rows, width = case
    product, bias, low = quarters(case, rows, width, bad=True), *quarters(case, 2, width)
    theta, high = low + 0.5, low + 1
    same("count_near", product, bias, low, high, size)
    count = LOOPS.count_near(product, bias, low, high, size)
    before = torch.randint(0, 4, (width,), generator=case[0])
    kept = before.clone()
    same("bounds_of_first", count, before, most, low, theta)
    assert torch.equal(before, kept)


@given(cases_with_numbers)
def test_largest(both: tuple[Case, int]) -> None:
    case, k = both
    _, rows, width = case
    same("largest", quarters(case, rows, width), quarters(case, width), min(k, width))


@given(cases_with_numbers)
def test_what_is_no_number_is_among_the_largest(both: tuple[Case, int]) -> None:
    """Of the first k, that is, and the rest are the largest numbers."""
    case, k = both
    _, rows, width = case
    k = min(k, width)
    product, bias = quarters(case, rows, width, bad=True), torch.zeros(width)
    starts, column, value = OPERATIONS.largest(product, bias, k)
    assert starts.tolist() == list(range(0, (rows + 1) * k, k))
    place = column.long().view(rows, k)
    assert (place.diff(dim=1) > 0).all()
    assert torch.equal(value.view(rows, k).nan_to_num(), product.gather(1, place).nan_to_num())
    key = product.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    expected = key.sort(dim=1, descending=True).values[:, :k]
    assert torch.equal(key.gather(1, place).sort(dim=1, descending=True).values, expected)


@given(cases_with_numbers)
def test_first_largest(both: tuple[Case, int]) -> None:
    case, m = both
    value = quarters(case, 20 + case[1], bad=True)
    same("first_largest", value, m)
    assert int(OPERATIONS.first_largest(value.nan_to_num(), m).sum()) == m


@given(cases)
def test_places_of_entries(case: Case) -> None:
    (starts, column, _), width = matrix(case), case[2]
    same("transpose", starts, column, width)
    same("rows_of", starts, len(column))
    same("ranks", column, width)
    same("ranks", column.long(), width)
    kept = torch.rand(len(column), generator=case[0]) < 0.5
    for mask, first in ((kept, 0), (kept & (column >= width // 2), width // 2)):
        ours, theirs = (each.narrow(starts, column, mask, first) for each in (OPERATIONS, LOOPS))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(column[ours[2]], column[theirs[2]])


@given(cases, st.integers(1, 5))
def test_entries_near_thresholds(case: Case, most: int) -> None:
    (_, column, _), width = matrix(case), case[2]
    value = quarters(case, len(column), bad=True)
    theta = quarters(case, width)
    same("thin", column, value, theta, theta + 0.5, most)
    same("near", column, value, theta, quarters(case, width).abs())


@given(cases, st.integers(1, 9), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_products(case: Case, d: int, dtype: torch.dtype, shared: bool) -> None:
    """`scale` and `base` of one row or of all; rows also as a transposed matrix lies in memory."""
    (starts, column, value), (_, rows, width) = matrix(case, dtype), case
    right = quarters(case, width, d).to(dtype)
    scale = quarters(case, 1 if shared else rows).to(dtype)
    base = quarters(case, 1 if shared else rows, d).to(dtype)
    order = torch.randperm(len(column), generator=case[0])
    left = quarters(case, rows, d).to(dtype)
    for each in (right, right.T.contiguous().T):
        same("weighted_rows", starts, column, value, order, each, scale, base)
        same("sampled_products", starts, column, left, each)


def test_the_device_decides() -> None:
    assert backend(torch.zeros(1)) is LOOPS
    assert BY_DEVICE == {"cpu": LOOPS}
    assert backend(Away(torch.zeros(1))) is OPERATIONS
    assert Away(torch.zeros(1)).device == DEVICE


def test_loops_share_the_memory_of_tensors() -> None:
    tensor = torch.zeros(3, 4)
    assert on_tensors(lambda array: array)(tensor).data_ptr() == tensor.data_ptr()
