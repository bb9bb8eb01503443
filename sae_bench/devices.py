"""Where tensors live: every decision about devices stands here."""

import torch

from sae_bench.errors import InputError


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, else the accelerator of this machine, else the CPU.

    Raises:
        InputError: the device asked for does not exist here.
    """
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return resolved


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device` (the CPU: available memory)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Host tensor from which copies to `device` can be asynchronous (page-locked for CUDA)."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
