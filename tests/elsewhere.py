"""A device that is none: its tensors lie in host memory, and mixing them with others is an error.

Code that runs on it knows of no device but that of its data. Only a real one can show its speed,
and what its own kernels do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")
"""Known by name to torch, and to its autograd, but without a single kernel."""


class Away(Tensor):
    """A tensor that says it lies on DEVICE; `here`: the same on the CPU."""

    here: Tensor

    def __new__(cls, here: Tensor) -> "Away":
        layout: dict[str, Any] = {}
        if here.layout == torch.strided:
            layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, dtype=here.dtype, device=DEVICE, **layout
        )
        made.here = here.detach()
        return made

    def __matmul__(self, other: Tensor) -> Tensor:
        """A vector's product is brought into shape in place by torch, which no wrapper notices."""
        return (self[None] @ other)[0] if self.ndim == 1 else super().__matmul__(other)

    def tolist(self) -> Any:
        """Which torch lacks for subclasses."""
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Callable, args: Any, kwargs: Any) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    away = [each for each in tensors if isinstance(each, Away)]
    device = torch.device(kwargs["device"]) if kwargs.get("device") else None
    to_away = bool(away) if device is None else device == DEVICE
    if any(each.ndim and not isinstance(each, Away) for each in tensors) and to_away:
        raise RuntimeError(f"{func}: tensors on several devices")
    if away and not to_away:
        raise RuntimeError(f"{func}: a copy to another device")
    known = {id(each.here): each for each in away}

    def here(each: Any) -> Any:
        if isinstance(each, Away):
            return each.here
        return torch.device("cpu") if isinstance(each, torch.device) else each

    def back(each: Any) -> Any:
        if not isinstance(each, Tensor) or not to_away:
            return each
        return known.get(id(each)) if id(each) in known else Away(each)

    return tree_map(back, func(*tree_map(here, args), **tree_map(here, kwargs)))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


FACTORIES = ("arange", "as_tensor", "empty", "full", "ones", "tensor", "zeros")
"""Functions that make tensors on a device without any dispatch."""


def _factory(function: Callable) -> Callable:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        device, (first, *_) = kwargs.get("device"), args
        if device is None or torch.device(device) != DEVICE:
            return function(*args, **kwargs)
        if isinstance(first, Away):
            return first.to(kwargs.get("dtype", first.dtype))
        if isinstance(first, Tensor) and first.ndim:
            raise RuntimeError(f"{function}: a copy from another device")
        return Away(function(*args, **kwargs | {"device": "cpu"}))

    return made


@contextmanager
def elsewhere() -> Iterator[None]:
    """Inside, tensors can be made on DEVICE."""
    with pytest.MonkeyPatch.context() as patch, _Operations():
        for name in FACTORIES:
            patch.setattr(torch, name, _factory(getattr(torch, name)))
        yield
