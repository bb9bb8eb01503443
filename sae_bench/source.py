"""Where training takes its activations from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from sae_bench.errors import InputError

if TYPE_CHECKING:
    from sae_bench.cache import ActivationCache


def checked_scale(s: float) -> float:
    """`s`, if it can be an activation scale.

    Raises:
        InputError: it is no positive number.
    """
    if not (math.isfinite(s) and s > 0):
        raise InputError(f"the activation scale must be a positive number, got {s}")
    return float(s)


class ActivationSource(ABC):
    """Seeded, reproducible, shuffled batches of activations in normalised units.

    Attributes:
        d_in: width of an activation x.
        held_out: activations of other documents, for evaluation; None if there are none.
    """

    d_in: int
    held_out: "ActivationCache | None"

    @property
    @abstractmethod
    def scale(self) -> float:
        """s = sqrt(mean of ||x||^2 over the source's training rows); batches hold x / s."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Identity and provenance, JSON-ready: equal records, equal batches."""

    @abstractmethod
    def batches(
        self, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches `start`, `start` + 1, ... of an endless sequence chosen by `seed`: x / s in
        float32, on the device."""
