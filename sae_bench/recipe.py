"""The training recipe: everything about optimisation that is not the architecture's."""

import math
from dataclasses import dataclass

from sae_bench.annotations import SEEDS
from sae_bench.components import Component
from sae_bench.errors import InputError


@dataclass(frozen=True)
class Recipe(Component):
    """Adam with warm-ups; defaults are the paper's (arXiv 2407.14435, appendix on training).

    Args:
        tokens: training tokens seen (whole batches; a cache smaller than this is repeated).
        batch_size: tokens a step.
        lr: peak learning rate.
        threshold_lr: learning rate of the activation's thresholds; None: the same as `lr`. Short
            runs need a larger one: a log threshold moves by about theta * lr a step.
        betas, adam_eps: Adam's.
        lr_warmup: steps of a cosine rise from 10% of `lr`. With unit rows and the encoder their
            transpose, x_hat starts at about d_sae / (2 d_in) times x (ReLU): where that is much
            larger than 1, a short warm-up overshoots, and latents die.
        lr_decay: steps of a linear fall to zero at the end.
        penalty_warmup: steps of a linear rise of the penalty's coefficient.
        clip: largest norm of the gradient over all parameters; None: no clipping.
        centre: start b_dec at the mean of the first batch (not of the whole source) instead of
            zero, so that a short run does not spend its steps on the mean.
        data_seed: draws the order of the data.
        autocast: matrix products in bfloat16, parameters and thresholds in float32.
        compile: run the loss through `torch.compile`.

    Raises:
        InputError: a value out of range, fewer tokens than one batch.
    """

    tokens: int
    batch_size: int = 4096
    lr: float = 7e-5
    threshold_lr: float | None = None
    betas: tuple[float, float] = (0.0, 0.999)
    adam_eps: float = 1e-8
    lr_warmup: int = 1_000
    lr_decay: int = 0
    penalty_warmup: int = 10_000
    clip: float | None = None
    centre: bool = False
    data_seed: int = 0
    autocast: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"Recipe: batch_size must be positive, got {self.batch_size}")
        if self.tokens < self.batch_size:
            raise InputError(
                f"Recipe: tokens = {self.tokens} is fewer than one batch of {self.batch_size}; "
                "raise tokens or lower batch_size"
            )
        for name in ("lr", "threshold_lr", "adam_eps", "clip"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"Recipe: {name} must be a positive number, got {value}")
        for name in ("lr_warmup", "lr_decay", "penalty_warmup"):
            if getattr(self, name) < 0:
                raise InputError(f"Recipe: {name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.data_seed < SEEDS.stop:
            raise InputError(
                f"Recipe: data_seed must be an integer >= 0 of 64 bits, got {self.data_seed}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"Recipe: betas must be two numbers in [0, 1), got {self.betas}")

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches in `tokens`."""
        return self.tokens // self.batch_size

    @property
    def ends_warm(self) -> bool:
        """Whether warm-ups and decay fit into the run."""
        return max(self.lr_warmup + self.lr_decay, self.penalty_warmup) <= self.steps

    def stretched(self, times: float) -> "Recipe":
        """The same shape in `times` as many tokens: warm-ups and decay stretch or shrink alike (at
        least one batch)."""
        return self.replace(
            tokens=max(self.batch_size, int(times * self.tokens)),
            lr_warmup=int(times * self.lr_warmup),
            lr_decay=int(times * self.lr_decay),
            penalty_warmup=int(times * self.penalty_warmup),
        )

    def lr_factor(self, step: int) -> float:
        """Factor on all learning rates at `step` (from 0)."""
        rise = min((step + 1) / self.lr_warmup, 1.0) if self.lr_warmup else 1.0
        warm = 0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * rise))
        fall = (self.steps - step) / (self.lr_decay + 1)
        return warm * min(fall, 1.0)

    def sparsity_scale(self, step: int) -> float:
        """Factor on the penalty's coefficient at `step` (from 0)."""
        return min(step / self.penalty_warmup, 1.0) if self.penalty_warmup else 1.0
