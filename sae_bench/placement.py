"""Where the rows of a cache live: on the device, in host memory, or on disk.

The three classes answer the same question with the same bits: `gather` gives the rows asked for,
on the device, in their storage dtype. Each can be made from any other.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae_bench.devices import free_memory, pinned
from sae_bench.errors import InputError
from sae_bench.shards import Shard

SAFE_SHARE = 0.5  # of the free memory, at most, goes to activations


class Rows(ABC):
    """Rows of activations somewhere.

    Attributes:
        d_in, dtype: width and storage type of a row.
        device: where gathered rows arrive.
        shards: the files behind the rows; empty if there are none.
    """

    d_in: int
    dtype: torch.dtype
    device: torch.device
    shards: Sequence[Shard]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def gather(self, rows: Int64[np.ndarray, "k"]) -> Float[Tensor, "k d_in"]:
        """The rows with these indices, in the order asked for."""

    @classmethod
    @abstractmethod
    def of(cls, rows: "Rows", device: torch.device) -> Self:
        """The same rows, living here, to arrive on `device`."""


Placement = type[Rows]


class DeviceRows(Rows):
    """Rows in the memory of the device that uses them."""

    def __init__(self, tensor: Float[Tensor, "rows d_in"], shards: Sequence[Shard] = ()) -> None:
        self.tensor = tensor
        self.d_in, self.dtype, self.device = tensor.shape[1], tensor.dtype, tensor.device
        self.shards = shards

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Self:  # noqa: D102
        return cls(_collected(rows, device), rows.shards)

    def __len__(self) -> int:
        return len(self.tensor)

    def gather(self, rows: Int64[np.ndarray, "k"]) -> Float[Tensor, "k d_in"]:  # noqa: D102
        return self.tensor[torch.from_numpy(rows).to(self.device)]


class HostRows(Rows):
    """Rows in host memory; what is gathered goes to the device by an asynchronous copy."""

    def __init__(
        self,
        tensor: Float[Tensor, "rows d_in"],
        device: torch.device,
        shards: Sequence[Shard] = (),
    ) -> None:
        self.tensor = tensor
        self.d_in, self.dtype, self.device = tensor.shape[1], tensor.dtype, device
        self.shards = shards

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Self:  # noqa: D102
        return cls(_collected(rows, torch.device("cpu")), device, rows.shards)

    def __len__(self) -> int:
        return len(self.tensor)

    def gather(self, rows: Int64[np.ndarray, "k"]) -> Float[Tensor, "k d_in"]:  # noqa: D102
        gathered = self.tensor[torch.from_numpy(rows)]
        return pinned(gathered, self.device).to(self.device, non_blocking=True)


class DiskRows(Rows):
    """Rows in memory-mapped shards; what is gathered goes to the device as from host memory."""

    def __init__(self, shards: Sequence[Shard], device: torch.device) -> None:
        first = shards[0].activations()
        self.d_in, self.dtype, self.device = first.shape[1], first.dtype, device
        self.shards = shards
        self._stops = np.cumsum([shard.rows for shard in shards])
        self._mapped = lru_cache(maxsize=512)(lambda index: shards[index].activations())

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Self:  # noqa: D102
        if not rows.shards:
            raise InputError(
                "these activations were given in memory: they have no files on disk; "
                "place them on the device or in host memory"
            )
        return cls(rows.shards, device)

    def __len__(self) -> int:
        return int(self._stops[-1])

    def gather(self, rows: Int64[np.ndarray, "k"]) -> Float[Tensor, "k d_in"]:  # noqa: D102
        gathered = torch.empty((len(rows), self.d_in), dtype=self.dtype)
        owners = np.searchsorted(self._stops, rows, side="right")
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            start = self._stops[owner] - self.shards[owner].rows
            source = torch.from_numpy(rows[here] - start)
            gathered[torch.from_numpy(here)] = self._mapped(int(owner))[source]
        return pinned(gathered, self.device).to(self.device, non_blocking=True)


def slices(n: int, size: int) -> Iterator[Int64[np.ndarray, "k"]]:
    """range(n) in index arrays of `size`, the last one shorter."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


def fitting(rows: Rows, device: torch.device) -> Placement:
    """The fastest place with room to spare for `rows`: device, then host, then disk.

    Raises:
        InputError: rows without files fit nowhere.
    """
    needed = len(rows) * rows.d_in * rows.dtype.itemsize
    if needed <= SAFE_SHARE * free_memory(device):
        return DeviceRows
    if device.type != "cpu" and needed <= SAFE_SHARE * free_memory(torch.device("cpu")):
        return HostRows
    return DiskRows if rows.shards else HostRows


def _collected(rows: Rows, device: torch.device) -> Float[Tensor, "rows d_in"]:
    if isinstance(rows, DeviceRows | HostRows) and rows.tensor.device == device:
        return rows.tensor
    tensor = torch.empty((len(rows), rows.d_in), dtype=rows.dtype, device=device)
    for indices in slices(len(rows), 8192):
        tensor[indices[0] : indices[-1] + 1] = rows.gather(indices)
    return tensor
