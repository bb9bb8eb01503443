import os
from itertools import pairwise

import numpy as np
import pytest
import torch

from sae_bench import sparse_kernels as kernels
from sae_bench.parallel import by_entries, evenly, share


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_row_is_done_once(threads: int) -> None:
    torch.set_num_threads(threads)
    for rows in (0, 1, 2, 7, 100):
        done = np.zeros(rows, np.int64)

        def count(first: int, last: int, done: np.ndarray = done) -> None:
            done[first:last] += 1

        share(count, evenly(rows), 10**9)
        assert (done == 1).all()


def test_ranges_hold_about_equally_many_entries() -> None:
    counts = np.array([100, 0, 0, 1, 1, 1, 97, 0, 50, 50])
    ends = by_entries(kernels.offsets(counts))(3)
    assert ends[0] == 0
    assert ends[-1] == 10
    assert (np.diff(ends) >= 0).all()
    parts = [counts[a:b].sum() for a, b in pairwise(ends)]
    assert max(parts) <= 200


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    product = torch.randn(300, 900, generator=generator).numpy()
    rows = torch.randn(900, 64, generator=generator).numpy()
    bias, bound = np.zeros(900, np.float32), np.full(900, 1.5, np.float32)

    def everything() -> list[bytes]:
        near = kernels.count_near(product, bias, bound - 1, bound + 1, 16)
        starts, column, value = kernels.above(product, bias, np.stack([bound, bound - 1]), 150)
        top = kernels.largest(product, bias, 9)
        order, one, base = (
            np.arange(len(column)),
            np.ones(1, np.float32),
            np.ones((1, 64), np.float32),
        )
        out = kernels.weighted_rows(starts, column, value, order, rows, one, base)
        sampled = kernels.sampled_products(starts, column, out, rows)
        kernels.remove_parallel(rows, other := rows[::-1].copy())
        kernels.to_unit_rows(other, 1e-12)
        return [each.tobytes() for each in (near, starts, column, value, *top, out, sampled, other)]

    torch.set_num_threads(1)
    alone = everything()
    torch.set_num_threads(threads)
    assert everything() == alone


def test_a_forked_child_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    product, zeros = np.ones((500, 500), np.float32), np.zeros(500, np.float32)
    kernels.above(product, zeros, zeros[None], 500)
    child = os.fork()
    if child == 0:
        starts, *_ = kernels.above(product, zeros, zeros[None], 500)
        os._exit(0 if starts[-1] == 250_000 else 1)
    assert os.waitpid(child, 0)[1] == 0
