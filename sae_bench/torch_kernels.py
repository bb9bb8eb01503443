"""What `sparse_kernels` computes, in operations of torch, for tensors on a device of its own.

Functions of the same names give the same entries; sums differ in their order, so floats agree to
round-off. `sparse_kernels` says what each computes, this module how.

Needs products with matrices in CSR form, which torch has for the CPU and for CUDA (cuSPARSE: SpMM
in `weighted_rows`, SDDMM in `sampled_products`). The host waits for the device where the number of
entries found has to be known: once in each `above`, `largest`, `near` and `narrow`, and nowhere
else here; a step waits besides where numbers decide how it goes on, such as a `Thinning`. Beside
its result and a few numbers for each entry, a search takes about 20 bytes for each element of
`product`, which is one piece of a batch; nothing takes entries x d.

Speed on CUDA is unmeasured; on the CPU the compiled loops are faster.
"""

import warnings

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Entries = tuple[Int[Tensor, " _"], Int[Tensor, " _"], Float[Tensor, " _"]]
"""starts, column, value"""


def above(
    product: Float[Tensor, "rows width"],
    bias: Float[Tensor, " width"],
    bounds: Float[Tensor, "blocks width"],
    size: int,
) -> Entries:
    """All that is not at most its bound."""
    pre = product + bias
    if len(bounds) > 1:
        bounds = bounds.repeat_interleave(size, 0)[: len(pre)]
    return _listed(pre, ~(pre <= bounds))


def count_near(
    product: Float[Tensor, "rows width"],
    bias: Float[Tensor, " width"],
    low: Float[Tensor, " width"],
    high: Float[Tensor, " width"],
    size: int,
) -> Int[Tensor, "blocks width"]:
    """Sums over blocks of rows, the last one filled up."""
    pre, blocks = product + bias, -(-len(product) // size)
    near = torch.zeros(blocks * size, pre.shape[1], dtype=torch.bool, device=pre.device)
    torch.logical_and(pre > low, pre <= high, out=near[: len(pre)])
    return near.view(blocks, size, pre.shape[1]).sum(1, dtype=torch.int32)


def bounds_of_first(
    count: Int[Tensor, "blocks width"],
    before: Int[Tensor, " width"],
    most: int,
    low: Float[Tensor, " width"],
    theta: Float[Tensor, " width"],
) -> Float[Tensor, "blocks width"]:
    """By what came before each block."""
    return torch.where(before + count.cumsum(0) - count < most, low, theta)


def largest(product: Float[Tensor, "rows width"], bias: Float[Tensor, " width"], k: int) -> Entries:
    """Whatever exceeds the k-th largest, and the first of what equals it. What is no number counts
    as infinite; `sparse_kernels` promises nothing of rows that hold such."""
    pre = product + bias
    key = pre.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = key.topk(k, dim=1).values[:, -1:]
    more, ties = key > least, key == least
    wanted = k - more.sum(1, keepdim=True)
    return _listed(pre, more | (ties & (ties.cumsum(1, dtype=torch.int32) <= wanted)))


def first_largest(value: Float[Tensor, " entries"], m: int) -> Bool[Tensor, " entries"]:
    """As `largest`, of all entries. Where some are no numbers, fewer are found, as there."""
    least = value.topk(m).values[-1]
    more, ties = value > least, value == least
    return more | (ties & (ties.cumsum(0) <= m - more.sum()))


def transpose(
    starts: Int[Tensor, " ends"], column: Int[Tensor, " entries"], width: int
) -> tuple[Int[Tensor, " columns"], Int[Tensor, " entries"], Int[Tensor, " entries"]]:
    """By a stable sort."""
    columns, order = column.sort(stable=True)
    return _starts(columns, width), order, rows_of(starts, len(column))[order]


def rows_of(starts: Int[Tensor, " ends"], entries: int) -> Int[Tensor, " entries"]:
    """Each row's number, as often as it has entries."""
    every = torch.arange(len(starts) - 1, dtype=torch.int32, device=starts.device)
    return every.repeat_interleave(starts.diff(), output_size=entries)


def narrow(
    starts: Int[Tensor, " ends"],
    column: Int[Tensor, " entries"],
    kept: Bool[Tensor, " entries"],
    first: int,
) -> tuple[Int[Tensor, " ends"], Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
    """By how many are kept before each row; the index is a list, for which the host waits once,
    and not at each use as with a mask."""
    chosen = kept.nonzero().squeeze(1)
    return offsets(kept)[starts], column[chosen] - first, chosen


def ranks(
    column: Int[Tensor, " entries"], width: int
) -> tuple[Int[Tensor, " entries"], Int[Tensor, " width"]]:
    """By a stable sort."""
    columns, order = column.sort(stable=True)
    starts = _starts(columns, width)
    place = torch.arange(len(column), device=column.device)
    out = torch.empty_like(place)
    out[order] = place - starts[columns.long()]
    return out, starts.diff()


def thin(
    column: Int[Tensor, " entries"],
    value: Float[Tensor, " entries"],
    theta: Float[Tensor, " width"],
    high: Float[Tensor, " width"],
    most: int,
) -> Bool[Tensor, " entries"]:
    """By how many of those up to `high` come earlier in the column: a stable sort."""
    columns, order = column.sort(stable=True)
    near = value <= high.index_select(0, column)
    sorted_near = near[order].long()
    before = sorted_near.cumsum(0) - sorted_near
    rank = torch.empty_like(before)
    rank[order] = before - before[_starts(columns, len(high))[columns.long()]]
    return ~near | (rank < most) | (value > theta.index_select(0, column))


def near(
    column: Int[Tensor, " entries"],
    value: Float[Tensor, " entries"],
    theta: Float[Tensor, " width"],
    half: Float[Tensor, " width"],
) -> Int[Tensor, " near"]:
    """The comparison, entry by entry."""
    distance = (value - theta.index_select(0, column)).abs()
    return (distance <= half.index_select(0, column)).nonzero().squeeze(1)


def weighted_rows(
    starts: Int[Tensor, " ends"],
    column: Int[Tensor, " entries"],
    value: Float[Tensor, " entries"],
    order: Int[Tensor, " entries"],
    rows: Float[Tensor, "width d"],
    scale: Float[Tensor, " #out"],
    base: Float[Tensor, "#out d"],
) -> Float[Tensor, "out d"]:
    """A product of a matrix in CSR form and a dense one (SpMM)."""
    shape = len(starts) - 1, len(rows)
    matrix = _matrix(starts, column, value[order], shape)
    start = (scale[:, None] * base).expand(shape[0], rows.shape[1])
    return torch.addmm(start, matrix, rows)


def sampled_products(
    starts: Int[Tensor, " ends"],
    column: Int[Tensor, " entries"],
    left: Float[Tensor, "rows d"],
    rows: Float[Tensor, "width d"],
) -> Float[Tensor, " entries"]:
    """A product of dense matrices at the places of one in CSR form (SDDMM)."""
    if not len(column):
        return rows.new_empty(0)
    shape = len(left), len(rows)
    places = _matrix(starts, column, rows.new_zeros(len(column)), shape)
    return torch.sparse.sampled_addmm(places, left, rows.T, beta=0).values()


def _matrix(
    starts: Int[Tensor, " ends"],
    column: Int[Tensor, " entries"],
    value: Float[Tensor, " entries"],
    shape: tuple[int, int],
) -> Tensor:
    starts = starts.to(column.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, column, value, shape, check_invariants=False)


def _listed(pre: Float[Tensor, "rows width"], found: Bool[Tensor, "rows width"]) -> Entries:
    place = found.flatten().nonzero().squeeze(1)  # the host waits here
    return offsets(found.sum(1)), (place % pre.shape[1]).int(), pre.flatten()[place]


def offsets(count: Shaped[Tensor, " rows"]) -> Int[Tensor, " ends"]:
    """Where each row's entries begin, and the end of the last."""
    return torch.nn.functional.pad(count.cumsum(0), (1, 0))


def _starts(columns: Int[Tensor, " entries"], width: int) -> Int[Tensor, " columns"]:
    """Where each column begins among sorted ones, and the end of the last."""
    every = torch.arange(width + 1, dtype=columns.dtype, device=columns.device)
    return torch.searchsorted(columns, every)
