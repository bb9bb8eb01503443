"""What the sparse path computes with: compiled loops on the CPU, operations of torch elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_bench import sparse_kernels, torch_kernels

Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Backend:
    """Functions of tensors; `sparse_kernels` says what each of them computes."""

    above: Callable[..., Three]
    count_near: Callable[..., Tensor]
    bounds_of_first: Callable[..., Tensor]
    largest: Callable[..., Three]
    first_largest: Callable[..., Tensor]
    transpose: Callable[..., Three]
    rows_of: Callable[..., Tensor]
    narrow: Callable[..., Three]
    ranks: Callable[..., tuple[Tensor, Tensor]]
    thin: Callable[..., Tensor]
    near: Callable[..., Tensor]
    weighted_rows: Callable[..., Tensor]
    sampled_products: Callable[..., Tensor]

    @classmethod
    def of(cls, module: ModuleType, adapted: Callable[[Any], Any] = lambda f: f) -> "Backend":
        """The functions of these names in a module, each `adapted` to tensors."""
        return cls(**{each.name: adapted(getattr(module, each.name)) for each in fields(cls)})


def on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays for tensors in host memory, which share theirs."""

    def adapted(*args: Any) -> Any:
        found = function(*(_array(each) if isinstance(each, Tensor) else each for each in args))
        if isinstance(found, np.ndarray):
            return torch.from_numpy(found)
        return tuple(map(torch.from_numpy, found))

    return adapted


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


LOOPS = Backend.of(sparse_kernels, on_tensors)
OPERATIONS = Backend.of(torch_kernels)
BY_DEVICE = {"cpu": LOOPS}
"""By the kind of device; `OPERATIONS` where there is none."""


def backend(tensor: Tensor) -> Backend:
    """That of the device on which a tensor lies."""
    return BY_DEVICE.get(tensor.device.type, OPERATIONS)
