"""The activations that every library is given: one file of shuffled, normalised rows."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_bench.cache import ActivationCache
from sae_bench.components import digest
from sae_bench.errors import InputError
from sae_bench.files import write_atomically

HELD_OUT = 8192
"""Rows, at most, that final losses are measured on."""


def shared(cache: ActivationCache, folder: Path, seed: int = 0) -> tuple[Path, str]:
    """Writes `train` (rows, d_in), the order in which the trainer would see one epoch of the cache,
    and `test`, held-out rows, both divided by the training side's scale: E||x||^2 = 1.

    Returns:
        The file, found again if it was there, and an identifier of its content.

    Raises:
        InputError: the cache has no held-out side.
    """
    if cache.held_out is None:
        raise InputError("benchmarks need held-out activations; build the cache with held_out > 0")
    name = digest({**cache.record(), "order": seed})
    path = folder / f"activations-{name}.safetensors"
    if not path.exists():
        rows = cache.rows // 32 * 32
        train = next(cache.placed("cpu").batches(rows, seed)).contiguous()
        test = torch.cat(list(cache.held_out.placed("cpu").chunks(HELD_OUT)))[:HELD_OUT]
        tensors = {"train": train, "test": (test / cache.scale).contiguous()}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: save_file(tensors, partial))
    return path, name


def shape(path: Path) -> tuple[int, int]:
    """Rows and d_in of the training side."""
    with safe_open(path, "pt") as file:
        rows, d_in = file.get_slice("train").get_shape()
    return rows, d_in


def default_cache(folder: str | None, device: str | None) -> ActivationCache:
    """The cache in a folder, or the quickstart's: SmolLM2-135M, residual stream after layer 9."""
    if folder is not None:
        return ActivationCache.open(folder, device=device)
    from ablations.quickstart import PRESETS

    data: Any = PRESETS["smollm2"].data
    return data.cache(device)
