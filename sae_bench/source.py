"""Where training takes its activations from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sae_bench.cache import ActivationCache


class ActivationSource(Protocol):
    """Seeded, reproducible, shuffled batches of activations in normalised units.

    Attributes:
        d_in: width of an activation x.
        scale: s = sqrt(mean of ||x||^2 over the source's training rows); batches hold x / s.
        held_out: activations of other documents, for evaluation; None if there are none.
    """

    @property
    def d_in(self) -> int: ...  # noqa: D102

    @property
    def scale(self) -> float: ...  # noqa: D102

    @property
    def held_out(self) -> "ActivationCache | None": ...  # noqa: D102

    def record(self) -> dict[str, Any]:
        """Identity and provenance, JSON-ready: equal records, equal batches."""
        ...

    def batches(
        self, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches `start`, `start` + 1, ... of an endless sequence chosen by `seed`: x / s in
        float32, on the device."""
        ...
