"""JumpReLU SAE (arXiv 2407.14435)."""

from sae_bench.activations import Activation, JumpReLU, LogThreshold
from sae_bench.estimators import BatchKDE, Estimator
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, Penalty
from sae_bench.sae import SparseAutoencoder


class JumpReLUSAE(SparseAutoencoder):
    """A threshold a latent, L0 by straight-through gradients.

    f = pre 1[pre > theta]; loss ||x - x_hat||^2 + lambda sum H(pre_i - theta_i), with
    straight-through gradients to theta (equations 3, 9, 11-12)."""

    activation: Activation = JumpReLU(LogThreshold(1e-3))
    penalty: Penalty = L0(6e-4)
    kernel: Estimator = BatchKDE(Rectangle(1e-3))
