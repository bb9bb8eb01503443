"""Shards: the files that hold activations.

A shard holds whole contexts and one row for each of their ordinary tokens. Its rows lie in a
pseudo-random order seeded by the shard's index, so that any contiguous block of rows is a random
sample of the shard. All files are written atomically: a name exists only with its full content.
"""

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae_bench.contexts import Context
from sae_bench.errors import InputError
from sae_bench.files import checksum, checksum_of, write_atomically
from sae_bench.permutation import Permutation


def sum_of_squares(rows: Float[Tensor, "rows d_in"]) -> float:
    """Sum over rows of ||x||^2, in float64."""
    return math.fsum(float(part.double().square().sum()) for part in rows.split(1024))


@dataclass(frozen=True)
class Columns:
    """Where rows come from: token id, position in the context (BOS = 0), index of the document in
    its text, index of the context within its shard."""

    token: Int32[np.ndarray, "rows"]
    position: Int32[np.ndarray, "rows"]
    document: Int64[np.ndarray, "rows"]
    context: Int64[np.ndarray, "rows"]

    def take(self, order: Int64[np.ndarray, "k"]) -> "Columns":
        """The rows at `order`."""
        return Columns(
            self.token[order], self.position[order], self.document[order], self.context[order]
        )

    @staticmethod
    def concatenated(parts: "list[Columns]") -> "Columns":
        """The rows of all parts, one after the other."""
        return Columns(
            np.concatenate([part.token for part in parts]),
            np.concatenate([part.position for part in parts]),
            np.concatenate([part.document for part in parts]),
            np.concatenate([part.context for part in parts]),
        )


@dataclass(frozen=True)
class Shard:
    """One shard as a file of a folder.

    Attributes:
        path: a safetensors file.
        rows: number of rows in it.
        squares: sum over its rows of ||x||^2.
        checksum: xxh3_128 of the file.
    """

    path: Path
    rows: int
    squares: float
    checksum: str

    @classmethod
    def write(
        cls,
        path: Path,
        index: int,
        activations: Float[Tensor, "rows d_in"],
        columns: Columns,
        contexts: list[Context],
    ) -> Self:
        """Write rows, given in the order of their contexts, in the shard's shuffled order.

        Raises:
            InputError: the disk is full, or an activation is not finite in the storage dtype.
        """
        rows = len(activations)
        order = Permutation(rows, index)(np.arange(rows))
        columns = columns.take(order)
        squares = sum_of_squares(activations)
        if not math.isfinite(squares):
            dtype = str(activations.dtype).removeprefix("torch.")
            raise InputError(
                f"{path}: some activations are not finite in {dtype}; store them in bfloat16 or "
                "float32, and check the language model if they are already"
            )
        content = save(
            {
                "activations": activations[torch.from_numpy(order)].contiguous(),
                "token": torch.from_numpy(columns.token),
                "position": torch.from_numpy(columns.position),
                "document": torch.from_numpy(columns.document),
                "context": torch.from_numpy(columns.context),
                "context_ids": torch.from_numpy(
                    np.concatenate([context.ids for context in contexts]).astype(np.int32)
                ),
                "context_documents": torch.from_numpy(
                    np.concatenate([context.documents for context in contexts])
                ),
                "context_offsets": torch.from_numpy(
                    np.cumsum([0] + [len(context.ids) for context in contexts])
                ),
            }
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: partial.write_bytes(content))
        return cls(path, rows, squares, checksum_of(content))

    def activations(self) -> Float[Tensor, "rows d_in"]:
        """The rows in stored order and dtype, mapped from the file: only what is read is loaded."""
        return self._tensors("activations")[0]

    def columns(self) -> Columns:
        """The columns of the rows in stored order."""
        names = ("token", "position", "document", "context")
        return Columns(*(tensor.numpy().copy() for tensor in self._tensors(*names)))

    def contexts(self) -> list[Context]:
        """The contexts in the order of the text, special tokens included."""
        names = ("context_ids", "context_documents", "context_offsets")
        ids, documents, offsets = (tensor.numpy() for tensor in self._tensors(*names))
        return [
            Context(ids[start:stop].astype(np.int64), documents[start:stop].copy())
            for start, stop in pairwise(offsets)
        ]

    def n_contexts(self) -> int:
        """Number of contexts."""
        return len(self._tensors("context_offsets")[0]) - 1

    def _tensors(self, *names: str) -> list[Tensor]:
        """Tensors of the file, whose checksum is verified at its first use in this process.

        Raises:
            InputError: the file is missing, damaged, cut short or another cache's.
        """
        try:
            status = self.path.stat()
            _verify(self.path, status.st_size, status.st_mtime_ns, self.checksum)
            with safe_open(self.path, framework="pt") as file:
                return [file.get_tensor(name) for name in names]
        except FileNotFoundError:
            raise InputError(
                f"shard {self.path} is missing; build the cache again: it is extracted anew"
            ) from None
        except (OSError, SafetensorError) as error:
            raise _unusable(self.path, f"cannot be read ({error})") from None


@functools.cache
def _verify(path: Path, size: int, mtime_ns: int, expected: str) -> None:
    if checksum(path) != expected:
        raise _unusable(path, "is damaged or belongs to another cache: its checksum differs")


def _unusable(path: Path, problem: str) -> InputError:
    return InputError(
        f"shard {path} {problem}; delete that file and build the cache again: "
        "what is missing is extracted anew"
    )
