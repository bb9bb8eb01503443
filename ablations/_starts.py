"""A start at which few latents fire, for SAEs much wider than their input."""

from collections.abc import Mapping

import torch
from torch import Tensor

from architectures import JumpReLUSAE, ReLUSAE
from sae_bench.activations import Activation
from sae_bench.arm import Arm
from sae_bench.estimators import Estimator
from sae_bench.penalties import Penalty
from sae_bench.sae import SparseAutoencoder


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


class OffsetJumpReLUSAE(OffsetReLUSAE):
    """JumpReLU SAE with that start: a latent fires where w_i . x > offset + theta."""

    activation: Activation = JumpReLUSAE.activation
    penalty: Penalty = JumpReLUSAE.penalty
    kernel: Estimator = JumpReLUSAE.kernel


OFFSET: Mapping[type[SparseAutoencoder], type[SparseAutoencoder]] = {
    ReLUSAE: OffsetReLUSAE,
    JumpReLUSAE: OffsetJumpReLUSAE,
}


def offset(arm: Arm, by: float) -> Arm:
    """A ReLU or JumpReLU arm with that start."""
    slots = {**arm.slots, "offset": by}
    return Arm(OFFSET[arm.architecture], arm.d_sae, arm.recipe, arm.seed, slots)
