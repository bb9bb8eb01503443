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

    At the start pre_i = w_i . z - offset with z = x - b_dec and w_i a unit row of W_dec, in random
    directions: w_i . z is about N(0, sigma^2) with sigma^2 = ||z||^2 / d_in. A latent fires with
    probability Q(offset / sigma), the normal upper tail, and E[x_hat - b_dec] =
    (d_sae / d_in) Q(offset / sigma) z. Without an offset that is d_sae / (2 d_in) z: 14 z for
    16,384 latents of 576 dimensions, from where all codes fall at once and overshoot to L0 of about
    0. With one the factor differs between tokens.
    """

    offset: float = 0.0

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """b_enc at -offset."""
        tensors = super().initial(generator)
        tensors["b_enc"].fill_(-self.offset)
        return tensors


class OffsetJumpReLUSAE(OffsetReLUSAE):
    """JumpReLU SAE with that start: a latent fires where w_i . z > offset + theta =: c, and
    E[x_hat - b_dec] = (d_sae / d_in) (Q(c / sigma) + (theta / sigma) phi(c / sigma)) z, more than
    with ReLU where the same latents fire."""

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
