"""ReLU SAE with an L1 penalty (Bricken et al. 2023; Cunningham et al. 2023, arXiv 2309.08600)."""

from sae_bench.activations import Activation, ReLU
from sae_bench.penalties import L1, Penalty
from sae_bench.sae import SparseAutoencoder


class ReLUSAE(SparseAutoencoder):
    """The standard SAE: ReLU and L1.

    f = max(pre, 0); loss ||x - x_hat||^2 + lambda sum f_i, rows of W_dec of unit norm."""

    activation: Activation = ReLU()
    penalty: Penalty = L1(1e-2)
