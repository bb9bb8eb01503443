"""Gated SAE with a reparametrisation-invariant L1 (arXiv 2407.14435, p. 16 and appendix)."""

from jaxtyping import Float
from torch import Tensor

from architectures.gated import GatedSAE
from sae_bench.decoders import Decoder, FreeRows
from sae_bench.penalties import RIL1, Penalty


class GatedRIL1SAE(GatedSAE):
    """Gated with free decoder rows, whose norms weigh the penalty: no resampling is needed.

    Penalty lambda sum ReLU(pi)_i ||d_i||; the decoder of the auxiliary loss is the decoder itself,
    not a frozen copy; rows of W_dec start with norm 0.1 and the encoder as their transpose.
    """

    penalty: Penalty = RIL1(1e-2)
    decoder: Decoder = FreeRows(0.1)

    def decode_gate(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """The decoder itself, with gradients."""
        return self.decode(f)
