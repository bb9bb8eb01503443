import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.ranks import ranks


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, 5), max_size=30))
def test_ranks_count_what_came_before(latents: list[int]) -> None:
    rank, count = ranks(torch.tensor(latents, dtype=torch.int64), 6)
    assert rank.tolist() == [latents[:i].count(each) for i, each in enumerate(latents)]
    assert count.tolist() == [latents.count(each) for each in range(6)]
