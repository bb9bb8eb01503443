"""Filling the modules of other libraries."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def filled(module: Module, **tensors: Tensor) -> Module:
    """`module` with these parameters and buffers ("__" for "."), as it is used in evaluation."""
    state = module.state_dict()
    for name, value in tensors.items():
        target = state[name.replace("__", ".")]
        assert target.shape == value.shape, name
        target.copy_(value)
    return module.eval()
