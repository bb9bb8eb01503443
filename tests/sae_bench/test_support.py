"""The entries that are listed, against a loop over all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.backends import Backend
from sae_bench.support import BLOCK, Bounds, above, around, joined
from tests.either import BACKENDS, computed_by


def by_hand(
    matrix: np.ndarray, theta: np.ndarray, margin: float, most: int
) -> list[tuple[int, int]]:
    """Places above theta, or among the first `most` near ones of their latent; or no numbers."""
    places, seen = [], np.zeros(matrix.shape[1], int)
    for token, row in enumerate(matrix):
        for latent, value in enumerate(row):
            is_near = theta[latent] - margin < value <= theta[latent] + margin
            if np.isnan(value) or value > theta[latent] or (is_near and seen[latent] < most):
                places.append((token, latent))
            seen[latent] += is_near
    return places


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
@given(
    st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=3),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_the_first_near_ones_of_each_latent(
    backend: Backend, sizes: list[int], width: int, most: int, seed: int
) -> None:
    """Products come some tokens at a time; what is needed falls as more are counted."""
    with computed_by(backend):
        check_first_near_ones(sizes, width, most, seed)


def check_first_near_ones(sizes: list[int], width: int, most: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    products = [torch.randn(size, width, generator=generator) for size in sizes]
    products[0][:1, :1] = torch.nan
    bias, theta = torch.randn(2, width, generator=generator).unbind()
    ends = Bounds(theta - 0.5, theta, theta + 0.5)
    parts, near = [], torch.zeros(width, dtype=torch.int64)
    for index, product in enumerate(products):
        ahead = len(products) - 1 - index
        parts.append(around(product, bias, ends, near, lambda count, ahead=ahead: most + ahead))
        assert parts[-1][0].near is not None
        near = parts[-1][0].near
    support, value = joined(parts)
    support, kept = support.thinned(value, theta, ends.high, most)
    matrix = (torch.cat(products) + bias).numpy()
    found = list(zip(support.tokens.tolist(), support.latents.tolist(), strict=True))
    assert found == by_hand(matrix, theta.numpy(), 0.5, most)
    assert np.array_equal(value[kept].numpy(), [matrix[place] for place in found], equal_nan=True)
    low, high = ends.low.numpy(), ends.high.numpy()
    assert near.tolist() == ((matrix > low) & (matrix <= high)).sum(0).tolist()


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 99))
def test_everything_above(backend: Backend, tokens: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    product = torch.randn(tokens, width, generator=generator)
    bias, bound = torch.randn(2, width, generator=generator).unbind()
    with computed_by(backend):
        support, value = above(product, bias, bound)
    matrix = product + bias
    token, latent = (matrix > bound).nonzero().unbind(1)
    assert support.tokens.tolist() == token.tolist()
    assert support.latents.tolist() == latent.tolist()
    assert torch.equal(value, matrix[token, latent])
