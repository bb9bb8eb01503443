"""The loops of the sparse path: all arithmetic that touches only the latents that fired.

Rows are stored one after another: `starts[i]` to `starts[i + 1]` are the entries of row i, `column`
says where in the row each stands, `value` what it is. Arrays are C-contiguous, in host memory.
`torch_kernels` computes the same on other devices; `backends` says which is used where.
"""

import numpy as np
from numpy import ndarray as Array

from sae_bench.parallel import by_entries, evenly, loop, share

GROUPS = (16, 8, 4, 2)
"""How many neighbours the largest of them may stand for in the first pass of `_largest`."""


@loop
def _count_above(first, last, product, bias, bounds, size, found, count):
    for i in range(first, last):
        row, flags, bound = product[i], found[i], bounds[i // size]
        for j in range(row.shape[0]):
            flags[j] = not (row[j] + bias[j] <= bound[j])  # what is no number counts as above
        total = np.int64(0)
        for j in range(row.shape[0]):
            total += flags[j]
        count[i] = total


@loop
def _list_above(first, last, product, bias, found, starts, column, value):
    for i in range(first, last):
        row, flags, place = product[i], found[i], starts[i]
        words = flags[: flags.shape[0] // 8 * 8].view(np.uint64)
        for w in range(words.shape[0]):
            if words[w]:
                for j in range(8 * w, 8 * w + 8):
                    if flags[j]:
                        column[place] = j
                        value[place] = row[j] + bias[j]
                        place += 1
        for j in range(8 * words.shape[0], flags.shape[0]):
            if flags[j]:
                column[place] = j
                value[place] = row[j] + bias[j]
                place += 1


@loop
def _count_near(first, last, product, bias, low, high, size, count):
    for block in range(first, last):
        total = count[block]
        for i in range(block * size, min(block * size + size, product.shape[0])):
            row = product[i]
            for j in range(row.shape[0]):
                value = row[j] + bias[j]
                total[j] += (value > low[j]) & (value <= high[j])


@loop
def _bounds(first, last, count, before, most, low, theta, out):
    for block in range(count.shape[0]):
        for j in range(first, last):
            out[block, j] = low[j] if before[j] < most else theta[j]
            before[j] += count[block, j]


@loop
def _largest(first, last, product, bias, k, group, column, value):
    width = product.shape[1]
    groups = (width + group - 1) // group
    row = np.empty(width, product.dtype)
    top = np.empty(groups, product.dtype)
    where = np.empty(width, np.int32)
    for i in range(first, last):
        for j in range(width):
            row[j] = product[i, j] + bias[j]
        for g in range(groups):
            best = row[g * group]
            for j in range(g * group + 1, min(width, g * group + group)):
                best = max(best, row[j])
            top[g] = best
        # At least k values reach the k-th largest of the groups' maxima.
        bound = np.partition(top, groups - k)[groups - k]
        found = 0
        for g in range(groups):
            if top[g] >= bound:
                for j in range(g * group, min(width, g * group + group)):
                    if row[j] >= bound:
                        where[found] = j
                        found += 1
        near = row[where[:found]]
        least = np.partition(near, found - k)[found - k] if found > k else bound
        ties = k
        for n in range(found):
            ties -= near[n] > least
        place = i * k
        for n in range(found):
            if place < (i + 1) * k and (near[n] > least or (near[n] == least and ties > 0)):
                ties -= near[n] == least
                column[place] = where[n]
                value[place] = near[n]
                place += 1
        for rest in range(place, (i + 1) * k):  # only where there are values that are no numbers
            column[rest] = rest - i * k
            value[rest] = row[rest - i * k]


@loop
def _transpose(first, last, starts, column, ends, order, token):
    for i in range(first, last):
        for e in range(starts[i], starts[i + 1]):
            place = ends[column[e]]
            order[place] = e
            token[place] = i
            ends[column[e]] = place + 1


@loop
def _ranks(first, last, column, count, out):
    for e in range(first, last):
        out[e] = count[column[e]]
        count[column[e]] += 1


@loop
def _thin(first, last, column, value, theta, high, most, count, kept):
    for e in range(first, last):
        i, kept[e] = column[e], True
        if value[e] <= high[i]:
            kept[e] = count[i] < most or value[e] > theta[i]
            count[i] += 1


@loop
def _near(first, last, column, value, theta, half, found, count):
    for e in range(first, last):
        i = column[e]
        found[count[0]] = e  # overwritten by the next unless it counts
        count[0] += abs(value[e] - theta[i]) <= half[i]


@loop
def _weighted_rows(first, last, starts, column, value, order, rows, scale, base, out):
    width, longest = rows.shape[1], 0
    for i in range(first, last):
        longest = max(longest, starts[i + 1] - starts[i])
    weight, place = np.empty(longest, rows.dtype), np.empty(longest, np.int64)
    for i in range(first, last):
        target, start, factor = out[i], base[i % base.shape[0]], scale[i % scale.shape[0]]
        for j in range(width):
            target[j] = factor * start[j]
        found = 0
        for e in range(starts[i], starts[i + 1]):  # entries below the threshold weigh nothing
            weight[found], place[found] = value[order[e]], column[e]
            found += weight[found] != 0
        e = 0
        while e + 4 <= found:
            a, b, c, d = weight[e], weight[e + 1], weight[e + 2], weight[e + 3]
            p, q = rows[place[e]], rows[place[e + 1]]
            r, s = rows[place[e + 2]], rows[place[e + 3]]
            for j in range(width):
                target[j] += (a * p[j] + b * q[j]) + (c * r[j] + d * s[j])
            e += 4
        while e < found:
            a, p = weight[e], rows[place[e]]
            for j in range(width):
                target[j] += a * p[j]
            e += 1


@loop
def _sampled_products(first, last, starts, column, left, rows, out):
    width = rows.shape[1]
    for i in range(first, last):
        x, e, end = left[i], starts[i], starts[i + 1]
        while e + 4 <= end:
            p, q = rows[column[e]], rows[column[e + 1]]
            r, s = rows[column[e + 2]], rows[column[e + 3]]
            a = b = c = d = rows.dtype.type(0)
            for j in range(width):
                a += x[j] * p[j]
                b += x[j] * q[j]
                c += x[j] * r[j]
                d += x[j] * s[j]
            out[e], out[e + 1], out[e + 2], out[e + 3] = a, b, c, d
            e += 4
        while e < end:
            p, a = rows[column[e]], rows.dtype.type(0)
            for j in range(width):
                a += x[j] * p[j]
            out[e] = a
            e += 1


@loop
def _remove_parallel(first, last, rows, gradient):
    for i in range(first, last):
        d, g = rows[i], gradient[i]
        dot = rows.dtype.type(0)
        for j in range(d.shape[0]):
            dot += g[j] * d[j]
        for j in range(d.shape[0]):
            g[j] -= dot * d[j]


@loop
def _to_unit_rows(first, last, rows, least):
    for i in range(first, last):
        d = rows[i]
        total = rows.dtype.type(0)
        for j in range(d.shape[0]):
            total += d[j] * d[j]
        norm = max(np.sqrt(total), rows.dtype.type(least))
        for j in range(d.shape[0]):
            d[j] /= norm


def above(product: Array, bias: Array, bounds: Array, size: int) -> tuple[Array, Array, Array]:
    """The entries of `product + bias` above a bound: starts, column, value.

    Args:
        bounds: one a column, for each `size` rows.
    """
    rows, width = product.shape
    found, count = np.empty((rows, width), np.uint8), np.empty(rows, np.int64)
    share(_count_above, evenly(rows), product.size, product, bias, bounds, size, found, count)
    starts = offsets(count)
    column, value = np.empty(starts[-1], np.int32), np.empty(starts[-1], product.dtype)
    share(_list_above, evenly(rows), product.size, product, bias, found, starts, column, value)
    return starts, column, value


def count_near(product: Array, bias: Array, low: Array, high: Array, size: int) -> Array:
    """How many entries of `product + bias` above `low`, up to `high`, each column has in each
    `size` rows."""
    count = np.zeros((-(-len(product) // size), product.shape[1]), np.int32)
    share(_count_near, evenly(len(count)), product.size, product, bias, low, high, size, count)
    return count


def bounds_of_first(count: Array, before: Array, most: int, low: Array, theta: Array) -> Array:
    """For each block of rows, `low` of the columns that have fewer than `most` near entries in the
    rows before, `theta` of the others.

    Args:
        count: how many each column has in each block.
        before: how many in rows before the first block.
    """
    out = np.empty(count.shape, low.dtype)
    _bounds(0, count.shape[1], count, before.copy(), most, low, theta, out)
    return out


def largest(product: Array, bias: Array, k: int) -> tuple[Array, Array, Array]:
    """The k largest of each row of `product + bias`, by column: of equal ones the first."""
    rows, width = product.shape
    group = next((g for g in GROUPS if width // g >= 2 * k), 1)
    column, value = np.empty(rows * k, np.int32), np.empty(rows * k, product.dtype)
    share(_largest, evenly(rows), rows * width, product, bias, k, group, column, value)
    return np.arange(0, (rows + 1) * k, k), column, value


def first_largest(value: Array, m: int) -> Array:
    """Which of all entries are the m largest; of equal ones the first. Where some are no numbers,
    fewer are found."""
    least = np.partition(value, len(value) - m)[len(value) - m]
    kept = value > least
    ties = np.flatnonzero(value == least)
    kept[ties[: m - np.count_nonzero(kept)]] = True
    return kept


def transpose(starts: Array, column: Array, width: int) -> tuple[Array, Array, Array]:
    """The entries by column: starts, order (their numbers) and token (their rows)."""
    ends = offsets(np.bincount(column, minlength=width))
    order, token = np.empty(len(column), np.int64), np.empty(len(column), np.int32)
    _transpose(0, len(starts) - 1, starts, column, ends[:-1].copy(), order, token)
    return ends, order, token


def rows_of(starts: Array, entries: int) -> Array:
    """The row of each of so many entries."""
    out = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    assert len(out) == entries
    return out


def narrow(starts: Array, column: Array, kept: Array, first: int) -> tuple[Array, Array, Array]:
    """Some of the entries, in a matrix that starts at the column `first`: starts, column, and by
    what index their values are picked."""
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept)))
    return before[starts], column[kept] - np.int32(first), kept


def ranks(column: Array, width: int) -> tuple[Array, Array]:
    """How many earlier entries each has in its column, and how many entries each column has."""
    out, count = np.empty(len(column), np.int64), np.zeros(width, np.int64)
    _ranks(0, len(column), column, count, out)
    return out, count


def thin(column: Array, value: Array, theta: Array, high: Array, most: int) -> Array:
    """Which entries are left if of those up to `high` each column keeps the first `most`, and all
    above `theta`."""
    kept, count = np.empty(len(column), np.bool_), np.zeros(len(high), np.int64)
    _thin(0, len(column), column, value, theta, high, most, count, kept)
    return kept


def near(column: Array, value: Array, theta: Array, half: Array) -> Array:
    """The numbers of the entries with |value - theta| <= half, theta and half those of the
    column."""
    found, count = np.empty(len(column), np.int64), np.zeros(1, np.int64)
    _near(0, len(column), column, value, theta, half, found, count)
    return found[: count[0]]


def weighted_rows(
    starts: Array,
    column: Array,
    value: Array,
    order: Array,
    rows: Array,
    scale: Array,
    base: Array,
) -> Array:
    """out[i] = scale[i] base[i] + sum of value[order[e]] rows[column[e]] over the entries e of row
    i; where `scale` or `base` has one row, it is that of all."""
    out = np.empty((len(starts) - 1, rows.shape[1]), rows.dtype)
    arrays = starts, column, value, order, rows, scale, base, out
    share(_weighted_rows, by_entries(starts), out.size + len(column) * rows.shape[1], *arrays)
    return out


def sampled_products(starts: Array, column: Array, left: Array, rows: Array) -> Array:
    """left[i] . rows[column[e]] for every entry e, i its row."""
    out, work = np.empty(len(column), rows.dtype), len(column) * rows.shape[1]
    share(_sampled_products, by_entries(starts), work, starts, column, left, rows, out)
    return out


def remove_parallel(rows: Array, gradient: Array) -> None:
    """gradient_i -= (gradient_i . row_i) row_i, in place."""
    share(_remove_parallel, evenly(len(rows)), rows.size, rows, gradient)


def to_unit_rows(rows: Array, least: float) -> None:
    """row_i /= max(||row_i||, least), in place."""
    share(_to_unit_rows, evenly(len(rows)), rows.size, rows, least)


def offsets(count):
    """Where each row's entries begin, and the end of the last."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(count)))
