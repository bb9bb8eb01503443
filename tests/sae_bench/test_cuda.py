"""What only a GPU can show of the sparse path: that its own kernels find the same numbers, which of
them the host waits for, and that nothing large is made."""

from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import ReLUSAE
from sae_bench.arm import Arm
from sae_bench.backends import OPERATIONS
from sae_bench.sae import SparseAutoencoder
from sae_bench.sparse import Sparse
from sae_bench.train import Trainee
from tests.sae_bench.test_sparse import doubles, step
from tests.small import ARCHITECTURES, D_IN, D_SAE, RECIPE, small_batch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

ROWS, WIDTH, D = 64, 200, 24


def matrices(dtype: torch.dtype) -> dict[str, Any]:
    """By the names that functions of a backend give them; values whose sums are exact."""
    generator = torch.Generator().manual_seed(0)

    def quarters(*shape: int) -> Tensor:
        return (torch.randint(-6, 7, shape, generator=generator) / 4).to(dtype)

    kept = torch.rand(ROWS, WIDTH, generator=generator) < 0.1
    kept[::5] = False
    column = kept.nonzero()[:, 1].int()
    theta = quarters(WIDTH)
    return {
        "starts": torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)]),
        "column": column,
        "value": quarters(len(column)),
        "order": torch.randperm(len(column), generator=generator),
        "mask": torch.rand(len(column), generator=generator) < 0.5,
        "product": quarters(ROWS, WIDTH),
        "bias": quarters(WIDTH),
        "bounds": quarters(4, WIDTH),
        "theta": theta,
        "high": theta + 0.5,
        "count": torch.randint(0, 4, (4, WIDTH), generator=generator, dtype=torch.int32),
        "before": torch.randint(0, 4, (WIDTH,), generator=generator),
        "left": quarters(ROWS, D),
        "right": quarters(WIDTH, D),
        "scale": quarters(1),
        "base": quarters(1, D),
        "width": WIDTH,
        "entries": len(column),
    }


CALLS: dict[str, list[Any]] = {
    "above": ["product", "bias", "bounds", 16],
    "count_near": ["product", "bias", "theta", "high", 16],
    "bounds_of_first": ["count", "before", 3, "theta", "high"],
    "largest": ["product", "bias", 7],
    "first_largest": ["value", 50],
    "transpose": ["starts", "column", "width"],
    "rows_of": ["starts", "entries"],
    "narrow": ["starts", "column", "mask", 0],
    "ranks": ["column", "width"],
    "thin": ["column", "value", "theta", "high", 2],
    "near": ["column", "value", "theta", "high"],
    "weighted_rows": ["starts", "column", "value", "order", "right", "scale", "base"],
    "sampled_products": ["starts", "column", "left", "right"],
}
LISTS = {"above", "largest", "near", "narrow"}


def called(name: str, of: dict[str, Any]) -> tuple[Tensor, ...]:
    found = getattr(OPERATIONS, name)(*(of.get(each, each) for each in CALLS[name]))
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CALLS)
def test_each_operation_as_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    here = matrices(dtype)
    there = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in here.items()}
    for a, b in zip(called(name, there), called(name, here), strict=True):
        assert a.is_cuda
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in LISTS])
def test_the_host_waits_for_lists_alone(name: str) -> None:
    there = {
        k: v.cuda() if isinstance(v, Tensor) else v for k, v in matrices(torch.float32).items()
    }
    called(name, there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        called(name, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cls", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_every_architecture(cls: type[SparseAutoencoder]) -> None:
    """Sparse steps there, dense ones on the CPU: to round-off."""
    sae, x = doubles(cls)
    dense = step(sae, x)
    sae.cuda()
    with sae.sparsely(1.0):
        thin = step(sae, x.cuda())
    assert isinstance(thin.loss.latents.f, Sparse)
    assert thin.numbers.keys() == dense.numbers.keys()
    for name, expected in dense.numbers.items():
        found = thin.numbers[name]
        assert found.is_cuda
        torch.testing.assert_close(
            found.cpu(), expected, rtol=1e-10, atol=1e-10, equal_nan=True, msg=name
        )


def test_products_need_no_memory_of_entries_times_d() -> None:
    rows, width, d, each = 2048, 4096, 1024, 64
    starts = torch.arange(0, (rows + 1) * each, each).cuda()
    column = torch.arange(each, dtype=torch.int32).repeat(rows).cuda()
    left, right = torch.randn(rows, d).cuda(), torch.randn(width, d).cuda()
    value, order = torch.randn(rows * each).cuda(), torch.arange(rows * each).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    OPERATIONS.sampled_products(starts, column, left, right)
    OPERATIONS.weighted_rows(
        starts, column, value, order, right, right.new_ones(1), right.new_zeros(1, d)
    )
    assert torch.cuda.max_memory_allocated() - before < rows * each * d * 4 / 4


def test_paths_are_timed_and_the_finding_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_bench.train.MOST", 1.0)
    arm = Arm(ReLUSAE, D_SAE, RECIPE)
    trainee = Trainee(arm, D_IN, torch.device("cuda"))
    for index in range(RECIPE.steps):
        trainee.advance(index, small_batch(index).cuda())
    assert trainee.result.reason is None
    assert trainee.result.path.startswith("median of ")
