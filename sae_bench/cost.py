"""What a grid will cost, before any of it is run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch.utils.flop_counter import FlopCounterMode

from sae_bench.ablation import Origin
from sae_bench.arm import Arm
from sae_bench.errors import InputError

RATE = 4e14
"""FLOP/s of one GPU: 40% of the dense bfloat16 peak of an H100 (989e12)."""
NARROW = 8
"""Width at which matrix products are counted."""


def products(arm: Arm) -> float:
    """Matrix products of a dense training step, loss and gradients, in units of the encoder's
    (2 d_in d_sae FLOP a token): 5 for an encoder and a decoder, as the gradient of x is not needed.

    Counted by running steps of the arm on activations of width 8, with no latent dead, so that
    architectures need not say it: what a second token adds, since biases are multiplied by
    matrices once a batch, however large.
    """
    sae = arm.build(NARROW)

    def flop(tokens: int) -> int:
        with FlopCounterMode(display=False) as counter:
            sae.loss(torch.ones(tokens, NARROW)).total.backward()
        return counter.get_total_flops()

    return (flop(2) - flop(1)) / (2 * NARROW * arm.d_sae)


@dataclass(frozen=True)
class Cost:
    """Of training a grid and of the activations it is trained on.

    Attributes:
        arms: those that would be trained.
        tokens: that they see, all together.
        flop: of matrix products alone, dense: sum over arms of tokens * products * 2 d_in d_sae.
            Not in it: the rest of a step, which is bound by memory, evaluation, and the language
            model (2 FLOP a parameter and token, once for all arms).
        stored: bytes of a site's activations, held-out ones included.
    """

    arms: int
    tokens: int
    flop: float
    stored: int

    @classmethod
    def of(cls, arms: Iterable[Arm], data: Origin, d_in: int) -> Self:
        """Of arms (skipped ones cost nothing) on activations of width `d_in`.

        Raises:
            InputError: the width is not positive.
        """
        if d_in < 1:
            raise InputError(f"cost: the width of activations must be positive, got {d_in}")
        arms = [arm for arm in arms if arm.objection is None]
        tokens = [arm.recipe.steps * arm.recipe.batch_size for arm in arms]
        encoders = (2 * d_in * arm.d_sae * products(arm) for arm in arms)
        flop = sum(n * each for n, each in zip(tokens, encoders, strict=True))
        return cls(len(arms), sum(tokens), flop, data.stored(d_in))

    @property
    def hours(self) -> float:
        """Hours of one GPU at `RATE`."""
        return self.flop / RATE / 3600

    def __str__(self) -> str:
        return (
            f"cost: {self.arms} arms see {self.tokens:.3g} tokens: {self.flop:.2e} FLOP of dense "
            f"matrix products, {self.hours:.2g} hours of a GPU at {RATE:.0e} FLOP/s (the language "
            f"model and evaluation not counted); activations of a site {self.stored / 1e9:.3g} GB"
        )
