"""Steps on a device of their own give the numbers of dense ones on the CPU, copy nothing from one
device to the other, and wait for the device as seldom as the operations of torch say."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from architectures import ReLUSAE
from sae_bench.sae import SparseAutoencoder
from sae_bench.sparse import Sparse
from tests.elsewhere import DEVICE, Away, elsewhere
from tests.sae_bench.test_combinations import estimators
from tests.sae_bench.test_host import Waits
from tests.sae_bench.test_sparse import Step, doubles, step
from tests.small import ARCHITECTURES, JUMP


def check_elsewhere(sae: SparseAutoencoder, x: Tensor) -> Step:
    """For an SAE in float64: to round-off. Returns the step on the other device."""
    dense = step(sae, x)
    with elsewhere():
        sae._apply(Away)
        with sae.sparsely(1.0):
            away = step(sae, Away(x))
        f = away.loss.latents.f
        assert isinstance(f, Sparse)
        assert f.device == away.loss.total.device == DEVICE
        assert isinstance(f.dense(), Away)
    assert away.numbers.keys() == dense.numbers.keys()
    for name, expected in dense.numbers.items():
        found = away.numbers[name]
        assert isinstance(found, Away), name
        torch.testing.assert_close(
            found.here, expected, rtol=1e-11, atol=1e-11, equal_nan=True, msg=name
        )
    return away


@pytest.mark.parametrize("cls", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("rows", [5, 1024])
def test_every_architecture(
    cls: type[SparseAutoencoder], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_bench.projection.ROWS", rows)
    check_elsewhere(*doubles(cls))


@pytest.mark.parametrize("kernel", estimators(False), ids=lambda kernel: type(kernel).__name__)
def test_every_estimator(kernel: Any) -> None:
    check_elsewhere(*doubles(SparseAutoencoder, **JUMP | {"kernel": kernel}))


def test_a_copy_to_the_other_device_is_an_error() -> None:
    """What the others hold is held: a mixture of devices, and a copy there or back."""
    with elsewhere():
        away, here = Away(torch.ones(2)), torch.ones(2)
        for mixed in (
            lambda: away + here,
            lambda: here.to(DEVICE),
            lambda: away.cpu(),
            lambda: torch.as_tensor(here, device=DEVICE),
        ):
            with pytest.raises(RuntimeError, match=r"several devices|a copy"):
                mixed()
        assert (away + torch.tensor(1.0)).sum().item() == 4


# -- waits ----------------------------------------------------------------------------------------


class WaitsThere(Waits):
    """Those for the other device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, Away) for each in tree_leaves(args)):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def waits(sae: SparseAutoencoder, x: Tensor) -> dict[str, int]:
    """Those of a sparse step."""
    with elsewhere(), WaitsThere() as counted:
        sae._apply(Away)
        with sae.sparsely(1.0):
            step(sae, Away(x))
    return dict(counted.found)


def test_a_search_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(*doubles(ReLUSAE)) == {"nonzero": 1}
    monkeypatch.setattr("sae_bench.projection.ROWS", 8)
    assert waits(*doubles(ReLUSAE)) == {"nonzero": 4}


def test_further_waits() -> None:
    """TopK: dead latents. BatchTopK: those and a choice among what was found. Matryoshka: those and
    the entries of each prefix. Gated: whether a search was done before."""
    expected = {
        "TopKSAE": {"nonzero": 2},
        "BatchTopKSAE": {"nonzero": 3},
        "MatryoshkaSAE": {"nonzero": 8},
        "GatedSAE": {"nonzero": 1, "equal": 1},
        "GatedRIL1SAE": {"nonzero": 1, "equal": 1},
        "JumpReLUSAE": {"nonzero": 1},
        "ReLUSAE": {"nonzero": 1},
    }
    assert {name: waits(*doubles(ARCHITECTURES[name])) for name in expected} == expected
