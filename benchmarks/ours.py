"""This library's arms, stepped by its own trainer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from architectures import (
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
)
from architectures.topk import AuxK
from benchmarks.case import Case, Learner
from sae_bench.activations import BatchTopK, JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm
from sae_bench.devices import give_memory_back, keep_memory
from sae_bench.estimators import (
    BatchKDE,
    Estimator,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    WindowKDE,
)
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.penalties import L0, L1
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trainee

STEPS = 100_000
"""Steps of the run that a measured one is part of: the trainer logs every hundredth part of it."""

Slots = Callable[[Case], dict[str, Any]]


def topk(case: Case) -> dict[str, Any]:
    """TopK, and AuxK that does not act."""
    return {"activation": TopK(case.l0), "aux": AuxK(dead_after=case.dead_after)}


def batch_topk(case: Case) -> dict[str, Any]:
    """BatchTopK, and AuxK that does not act."""
    return {"activation": BatchTopK(case.l0), "aux": AuxK(dead_after=case.dead_after)}


def jump(case: Case, estimator: Callable[[Kernel], Estimator] = BatchKDE) -> dict[str, Any]:
    """JumpReLU with L0 and an estimator around the Rectangle kernel."""
    return {
        "activation": JumpReLU(LogThreshold(case.threshold)),
        "kernel": estimator(Rectangle(case.bandwidth)),
        "penalty": L0(case.coefficient),
    }


def l1(case: Case) -> dict[str, Any]:
    """L1."""
    return {"penalty": L1(case.coefficient)}


class Ours(Learner):
    """An arm in the hands of `Trainee.advance`: schedule, loss, backward, estimator, projections,
    optimiser, counters, and history where it is due."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee, self.index = trainee, 0

    def step(self, x: Tensor) -> None:  # noqa: D102
        self.trainee.advance(self.index, x)
        if self.trainee.result.reason is not None:
            raise FloatingPointError(self.trainee.result.reason)
        self.index += 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        f = self.trainee.sae.latents(x).f
        return f, self.trainee.sae.decode(f)

    def coefficient(self) -> float | None:
        """Of the penalty; 0 is that of `NoPenalty`."""
        return self.trainee.sae.penalty.coefficient or None

    def charge(self, coefficient: float) -> None:  # noqa: D102
        self.trainee.sae.penalty = self.trainee.sae.penalty.replace(coefficient=coefficient)


def trainee(architecture: type[SparseAutoencoder], slots: Slots, case: Case, first: Tensor) -> Ours:
    """The arm, on the path that the trainer takes by default."""
    recipe = Recipe(
        tokens=STEPS * case.batch,
        batch_size=case.batch,
        lr=case.lr,
        threshold_lr=case.log_lr,
        betas=case.betas,
        lr_warmup=0,
        penalty_warmup=0,
        centre=True,
    )
    arm = Arm(architecture, case.d_sae, recipe, seed=case.seed, slots=slots(case))
    give_memory_back()  # as `train` does it
    made = Trainee(arm, first.shape[1], torch.device(case.device))
    keep_memory()
    return Ours(made)


ESTIMATORS: Mapping[str, Callable[[Kernel], Estimator]] = {
    "MomentumKDE": MomentumKDE,
    "MeanKDE": MeanKDE,
    "WindowKDE": WindowKDE,
    "PersistentBandwidth": lambda kernel: PersistentBandwidth(BatchKDE(kernel)),
}
ARMS: Mapping[str, Callable[[Case, Tensor], Ours]] = {
    "ReLU": partial(trainee, ReLUSAE, l1),
    "TopK": partial(trainee, TopKSAE, topk),
    "BatchTopK": partial(trainee, BatchTopKSAE, batch_topk),
    "Matryoshka": partial(trainee, MatryoshkaSAE, batch_topk),
    "Gated": partial(trainee, GatedSAE, l1),
    "JumpReLU": partial(trainee, JumpReLUSAE, jump),
} | {
    f"JumpReLU + {name}": partial(trainee, JumpReLUSAE, partial(jump, estimator=estimator))
    for name, estimator in ESTIMATORS.items()
}
