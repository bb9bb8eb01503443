"""What decoder constraints do to the rows of a matrix, each row read and written once."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench import sparse_kernels as kernels


def remove_parallel_(rows: Float[Tensor, "d_sae d_in"], g: Float[Tensor, "d_sae d_in"]) -> None:
    """g_i -= (g_i . rows_i) rows_i, in place."""
    if _is_compiled(rows, g):
        kernels.remove_parallel(rows.detach().numpy(), g.detach().numpy())
    else:
        g.addcmul_((g * rows).sum(1, keepdim=True), rows, value=-1)


def to_unit_(rows: Float[Tensor, "d_sae d_in"], least: float = 1e-12) -> None:
    """rows_i /= max(||rows_i||, least), in place."""
    if _is_compiled(rows):
        kernels.to_unit_rows(rows.detach().numpy(), least)
    else:
        rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(least))


def _is_compiled(*tensors: Tensor) -> bool:
    return all(
        each.device.type == "cpu"
        and each.dtype in (torch.float32, torch.float64)
        and each.is_contiguous()
        for each in tensors
    )
