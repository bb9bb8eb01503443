import pytest
import torch

from sae_bench.rows import remove_parallel_, to_unit_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_compiled_and_plain_agree(dtype: torch.dtype, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, g = (torch.randn(40, 30, generator=generator).to(dtype) for _ in range(2))
    rows[3] = 0
    if transposed:
        rows, g = rows.T, g.T
    expected = g - (g * rows).sum(1, keepdim=True) * rows
    remove_parallel_(rows, g)
    near = {"rtol": 2e-2, "atol": 2e-1} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(g, expected, **near)
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    to_unit_(rows)
    torch.testing.assert_close(rows, unit, **near)


def test_a_gradient_keeps_nothing_parallel_to_unit_rows() -> None:
    rows, g = torch.randn(50, 20).double(), torch.randn(50, 20).double()
    to_unit_(rows)
    remove_parallel_(rows, g)
    assert (g * rows).sum(1).abs().max() < 1e-14
