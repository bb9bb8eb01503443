import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.backends import Backend
from sae_bench.ranks import near, ranks
from tests.either import BACKENDS, computed_by, either

__all__ = ["either"]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
@given(st.lists(st.integers(0, 5), max_size=30))
def test_ranks_count_what_came_before(backend: Backend, latents: list[int]) -> None:
    with computed_by(backend):
        rank, count = ranks(torch.tensor(latents, dtype=torch.int64), 6)
    assert rank.tolist() == [latents[:i].count(each) for i, each in enumerate(latents)]
    assert count.tolist() == [latents.count(each) for each in range(6)]


@pytest.mark.usefixtures("either")
def test_near_is_the_comparison_sample_by_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randint(0, 7, (500,), generator=generator)
    pre, theta = torch.rand(500, generator=generator), torch.rand(7, generator=generator)
    half = torch.tensor([0.0, 0.01, 0.1, 0.2, 0.3, 0.5, 2.0])
    expected = [
        index
        for index, (i, x) in enumerate(zip(latent.tolist(), pre, strict=True))
        if (x - theta[i]).abs() <= half[i]
    ]
    assert 0 < len(expected) < 500
    for kind in (torch.int32, torch.int64):
        assert near(latent.to(kind), pre, theta, half).tolist() == expected
    assert len(near(latent[:0], pre[:0], theta, half)) == 0
