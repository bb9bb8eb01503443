import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.decoders import FreeRows, UnitRows
from sae_bench.errors import InputError


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 100))
def test_rows_start_with_their_norm_in_seeded_directions(d_sae: int, d_in: int, seed: int) -> None:
    unit = UnitRows().initial(d_sae, d_in, generator(seed))
    free = FreeRows(0.1).initial(d_sae, d_in, generator(seed))
    assert unit.shape == (d_sae, d_in)
    assert torch.allclose(unit.norm(dim=1), torch.ones(d_sae))
    assert torch.allclose(free, 0.1 * unit)
    assert torch.equal(unit, UnitRows().initial(d_sae, d_in, generator(seed)))


def test_another_seed_gives_other_directions() -> None:
    first, second = (UnitRows().initial(50, 30, generator(seed)) for seed in (0, 1))
    assert not torch.isclose(first, second).all(dim=1).any()
    assert first.mean().abs() < 0.02  # both signs


@given(st.integers(0, 100))
def test_unit_rows_removes_the_parallel_gradient_and_nothing_else(seed: int) -> None:
    W = UnitRows().initial(9, 5, generator(seed)).double()
    W /= W.norm(dim=1, keepdim=True)
    gradient = torch.randn(9, 5, generator=generator(seed + 1), dtype=torch.float64)
    expected = torch.stack([g - (g @ d) * d for g, d in zip(gradient, W, strict=True)])
    UnitRows().project_gradient_(W, gradient)
    assert torch.allclose(gradient, expected)
    assert (gradient * W).sum(1).abs().max() < 1e-12


def test_unit_rows_renormalises_in_place() -> None:
    W = torch.tensor([[3.0, 4.0], [0.0, 0.5], [0.0, 0.0]])
    UnitRows().project_(W)
    assert torch.allclose(W, torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]]))


def test_free_rows_leaves_everything_alone() -> None:
    W, gradient = torch.randn(4, 3), torch.randn(4, 3)
    kept = W.clone(), gradient.clone()
    FreeRows().project_gradient_(W, gradient)
    FreeRows().project_(W)
    assert torch.equal(W, kept[0])
    assert torch.equal(gradient, kept[1])


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_is_a_positive_number(norm: float) -> None:
    with pytest.raises(InputError, match="FreeRows: norm must be a positive number"):
        FreeRows(norm)
