"""Dense steps, those of accelerators, hardly ever wait for the host: an operation whose shape or
value only the device knows stops it at every arm and step."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_bench.arm import Arm
from sae_bench.paths import Path
from sae_bench.train import Trainee
from tests.small import D_IN, small_arms

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")
"""Operations whose result the host must see."""


class Waits(TorchDispatchMode):
    """Counts them; an index that is a mask is one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in WAITING or masks:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arm", small_arms(), ids=lambda arm: arm.key)
def test_a_step_waits_only_for_a_list_of_samples_or_dead_latents(
    arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_sparse", False)  # as where there are no sparse loops
    trainee = Trainee(arm, D_IN, torch.device("cpu"))
    x = torch.randn(2, 32, D_IN, generator=torch.Generator().manual_seed(0))
    trainee.step(0, x[0])
    with Waits() as waits:
        trainee.step(1, x[1])
    lists = trainee.sae.needs_samples or hasattr(trainee.sae, "aux")
    assert waits.found == ({"nonzero": 1} if lists else {})
