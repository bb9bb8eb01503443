"""What is measured: one architecture at one size, the same for every library.

Imports no library that is measured, so that it can be read in the environment of each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sae_bench.errors import InputError


@dataclass(frozen=True)
class Case:
    """One measurement, in units in which E||x||^2 = 1.

    Args:
        architecture: name of an arm; a library's `ARMS` says which it has.
        d_sae: number of latents.
        l0: k of TopK and its kin; where a coefficient decides, the L0 that it is steered to.
        batch: tokens of a timed step.
        arms: trained on the same batches, one after the other; seeds count up from `seed`.
        warm_batch, warm_steps: the training before anything is timed.
        lr: of Adam, constant, without warm-up; betas: Adam's.
        threshold: start of JumpReLU's thresholds. A log threshold learns at `log_lr`, a raw one at
            `lr`: both then move by about the same distance a step.
        bandwidth: of the Rectangle kernel.
        coefficient: of the penalty at the start.
        steer: whether the coefficient follows L0 during the warm-up.
        dead_after: tokens of silence after which a latent counts as dead; more than a benchmark
            trains, so that no library's auxiliary loss acts.
        seed: draws the initial decoder.
        device: where it is trained.
    """

    architecture: str
    d_sae: int = 4608
    l0: int = 64
    batch: int = 2048
    arms: int = 1
    warm_batch: int = 256
    warm_steps: int = 1000
    lr: float = 1e-3
    log_lr: float = 3e-2
    betas: tuple[float, float] = (0.9, 0.999)
    threshold: float = 0.04
    bandwidth: float = 0.02
    coefficient: float = 0.0
    steer: bool = True
    dead_after: int = 10_000_000
    seed: int = 0
    device: str = "cpu"

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What `record` described."""
        first, second = record["betas"]
        return cls(**{**record, "betas": (first, second)})

    def decoder(self, d_in: int) -> Tensor:
        """The initial W_dec (d_sae, d_in), the same in every library: uniform entries, rows of unit
        norm. The encoder starts as its transpose, b_dec at the first batch's mean, all else at
        zero, as far as the library's own trainer does not overrule it."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.rand(self.d_sae, d_in, generator=generator) * 2 - 1
        return (rows / rows.norm(dim=1, keepdim=True)).to(self.device)

    @property
    def prefixes(self) -> list[int]:
        """Sizes of a Matryoshka SAE's nested dictionaries, those of our default."""
        return [round(share * self.d_sae) for share in (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1)]


class Learner(ABC):
    """An arm of some library under training."""

    def coefficient(self) -> float | None:
        """Of the penalty, in the library's own normalisation; None where there is none to set."""
        return None

    def charge(self, coefficient: float) -> None:
        """Sets the coefficient of the penalty."""
        raise NotImplementedError

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """One full step of the library's own trainer on a batch (batch, d_in)."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (batch, d_sae) and reconstruction of a batch as training computes them."""


@torch.no_grad()
def quality(learner: Learner, x: Tensor, size: int) -> dict[str, float]:
    """FVU and L0 over rows x, in batches of `size`: codes as in training (BatchTopK and Matryoshka
    choose by batch), squared error over squared deviation from the rows' mean."""
    error = on = torch.zeros((), dtype=torch.float64, device=x.device)
    used = x[: max(len(x) // size, 1) * size]
    for part in used.split(size):
        f, x_hat = learner.forward(part)
        error = error + (part - x_hat).double().square().sum()
        on = on + (f > 0).sum()
    deviation = (used - used.mean(0)).double().square().sum()
    return {"fvu": (error / deviation).item(), "l0": on.item() / len(used)}


def known(arms: Mapping[str, Any], case: Case, library: str) -> Any:
    """The arm of a case.

    Raises:
        InputError: the library has no such arm.
    """
    if case.architecture not in arms:
        raise InputError(f"{library} has no {case.architecture}; it has {', '.join(arms)}")
    return arms[case.architecture]
