"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.activations import Activation, Latents, ReLU
from sae_bench.penalties import L1, Penalty
from sae_bench.plain import Plain, PlainGated
from sae_bench.sae import SparseAutoencoder, squared_error


class GatedSAE(SparseAutoencoder):
    """A gate decides which latents are on, a magnitude path how strongly.

    pi = (x - b_dec) W_enc + b_gate ; f = 1[pi > 0] ReLU(((x - b_dec) W_enc) exp(r_mag) + b_mag).

    The penalty acts on ReLU(pi); an auxiliary loss ||x - x_hat_frozen(ReLU(pi))||^2 trains the
    gate, with W_dec and b_dec frozen in its decoder and the encoder's path through x - b_dec live.
    `threshold` is None; `sae_bench.to_jumprelu` gives the equal JumpReLU SAE.
    """

    activation: Activation = ReLU()
    penalty: Penalty = L1(1e-2)

    biases = ("b_gate", "b_mag", "b_dec")
    b_gate: Float[Tensor, " d_sae"]
    b_mag: Float[Tensor, " d_sae"]
    r_mag: Float[Tensor, " d_sae"]

    @classmethod
    def objection(cls, slots: Mapping[str, Any]) -> str | None:
        """The gate takes the place of activation and threshold."""
        if not isinstance(slots["activation"], ReLU):
            return "its gate decides which latents are on: the activation must stay ReLU"
        if slots["penalty"].through_step:
            return "its gate's step has no pseudo-derivative: a penalty on L0 has no gradient"
        return super().objection(slots)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Gate and magnitude paths start equal: zero biases and log-scales."""
        tensors = super().initial(generator)
        zeros = tensors.pop("b_enc")
        return tensors | {"b_gate": zeros, "b_mag": zeros.clone(), "r_mag": zeros.clone()}

    def latents(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        """`pre` is the gate's pi; `step` its sign, without a gradient."""
        shared = self.affine(x, self.W_enc, torch.zeros_like(self.b_gate))
        pi = shared + self.b_gate
        magnitude = shared * self.r_mag.exp() + self.b_mag
        step = (pi > 0).to(pi.dtype)
        return Latents(pi, step * magnitude.relu(), step)

    def plain(self) -> Plain:
        """A Gated SAE."""
        names = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
        return PlainGated(**{name: getattr(self, name).detach() for name in names})

    def decode_gate(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """The auxiliary decoder: a frozen copy of the decoder."""
        x_hat = torch.addmm(self.b_dec.detach(), f, self.W_dec.detach())
        return x_hat.to(self.b_dec.dtype)

    def loss_terms(
        self,
        x: Float[Tensor, "batch d_in"],
        latents: Latents,
        reconstruction: Float[Tensor, "batch d_in"],
        sparsity_scale: float,
    ) -> dict[str, Float[Tensor, ""]]:
        """Penalty and auxiliary reconstruction through the rectified gate."""
        gate = Latents(latents.pre, latents.pre.relu(), latents.step)
        return {
            "reconstruction": squared_error(x, reconstruction),
            "sparsity": sparsity_scale * self.penalty(gate, self.W_dec),
            "auxiliary": squared_error(x, self.decode_gate(gate.f)),
        }
