"""A start at which few latents fire, for SAEs much wider than their input."""

import torch
from torch import Tensor

from architectures.relu import ReLUSAE
from sae_bench.arm import Arm


class OffsetReLUSAE(ReLUSAE):
    """ReLU SAE whose encoder biases start at -offset, in units of pre, and are free afterwards.

    At the start f_i = max(w_i . x - offset, 0) with w_i a unit row of W_dec, in random directions.
    Where w_i . x is about N(0, sigma^2) with sigma^2 = E||x||^2 / d_in,
    E[x_hat] = (d_sae / d_in) Q(offset / sigma) x, with Q the normal upper tail. Without an offset
    that is x at d_sae = 2 d_in, and d_sae / (2 d_in) times x in general: 14 times for 16,384
    latents of 576 dimensions, from where all codes fall at once and overshoot to L0 of about 0.
    """

    offset: float = 0.0

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """b_enc at -offset."""
        tensors = super().initial(generator)
        tensors["b_enc"].fill_(-self.offset)
        return tensors


def offset(arm: Arm, by: float) -> Arm:
    """A ReLU arm with that start; others as they are (JumpReLU starts at thresholds)."""
    if arm.architecture is not ReLUSAE:
        return arm
    slots = {**arm.slots, "offset": by}
    return Arm(OffsetReLUSAE, arm.d_sae, arm.recipe, arm.seed, slots)
