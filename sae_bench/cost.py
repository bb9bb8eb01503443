"""What a grid will cost, before any of it is run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch.utils.flop_counter import FlopCounterMode

from sae_bench.ablation import Origin
from sae_bench.arm import Arm
from sae_bench.errors import InputError
from sae_bench.waves import Need, memory_need

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


def need_at(arm: Arm, d_in: int) -> Need:
    """`memory_need`, which is linear in the width, without an SAE of that width being built."""
    one, two = (memory_need(arm, n * NARROW) for n in (1, 2))
    steps = d_in / NARROW - 1
    return Need(*(round(a + (b - a) * steps) for a, b in zip(one, two, strict=True)))


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
        streamed: FLOP of the language model where it runs while arms are trained, once; every wave
            of arms lets it run again.
        need: bytes, the most of any arm: those it keeps, and what a step takes beside them.
    """

    arms: int
    tokens: int
    flop: float
    stored: int
    streamed: float
    need: Need

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
        streamed = data.streamed(max(tokens, default=0))
        return cls(len(arms), sum(tokens), flop, data.stored(d_in), streamed, _most(arms, d_in))

    @classmethod
    def total(cls, costs: Iterable[tuple[Origin, Self]]) -> Self:
        """Of several grids, one after the other; what those on the same activations share lies on
        disk once."""
        costs = list(costs)
        each = [cost for _, cost in costs]
        return cls(
            sum(cost.arms for cost in each),
            sum(cost.tokens for cost in each),
            sum(cost.flop for cost in each),
            sum({data: cost.stored for data, cost in costs}.values()),
            sum(cost.streamed for cost in each),
            Need(*(max(needs) for needs in zip(*(cost.need for cost in each), strict=True))),
        )

    @property
    def hours(self) -> float:
        """Hours of one GPU at `RATE`."""
        return self.flop / RATE / 3600

    def __str__(self) -> str:
        model = (
            f"evaluation not counted), and {self.streamed / RATE / 3600:.3g} hours of the language "
            "model for every wave of arms that memory holds"
            if self.streamed
            else "the language model and evaluation not counted)"
        )
        keeps, takes = (size / 1e9 for size in self.need)
        return (
            f"cost: {self.arms} arms see {self.tokens:.3g} tokens: {self.flop:.2e} FLOP of dense "
            f"matrix products, {self.hours:.3g} hours of a GPU at {RATE:.0e} FLOP/s ({model}; an "
            f"arm keeps {keeps:.3g} GB of memory and takes {takes:.3g} GB more in its step; "
            f"activations on disk {self.stored / 1e9:.3g} GB"
        )


def _most(arms: Iterable[Arm], d_in: int) -> Need:
    needs = [Need(0, 0), *(need_at(arm, d_in) for arm in arms)]
    return Need(*(max(sizes) for sizes in zip(*needs, strict=True)))
