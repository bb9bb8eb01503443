"""Activations made of known features, to see what a sparse autoencoder recovers."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq
from torch import Tensor

from sae_bench.annotations import fit_seed, typed
from sae_bench.cache import ActivationCache
from sae_bench.components import Component
from sae_bench.errors import InputError


@dataclass(frozen=True)
class SyntheticFeatures(Component):
    """x = sum_i c_i d_i + noise: unit-norm directions d_i, sparse codes c_i >= 0.

    Feature i fires independently with probability p_i = min(1, a (i + 1)^-decay), where a is such
    that the p_i sum to mean_l0; when it fires, c_i = |z| with z standard normal (half-normal).
    Noise is isotropic normal with E||noise||^2 = noise^2.

    Attributes:
        d_in: width of x.
        n_features: number of true features; more than d_in is superposition.
        mean_l0: expected number of features in a token.
        seed: chooses the directions.
        decay: exponent of the power law of the firing probabilities; 0: all alike.
        noise: root mean square norm of the noise.
    """

    d_in: int
    n_features: int
    mean_l0: float
    seed: int = 0
    decay: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        reals = self.decay, self.noise
        finite = all(math.isfinite(value) and value >= 0 for value in reals)
        if self.d_in < 1 or self.n_features < 1 or not finite:
            raise InputError(
                f"{self.label}: d_in and n_features must be positive, decay and noise numbers that "
                "are not negative"
            )
        if not (float(self.n_features) ** -self.decay):
            raise InputError(
                f"{self.label}: with decay = {self.decay:g} the last of {self.n_features} features "
                "never fires; choose a smaller one"
            )
        fit_seed(self.seed, f"{self.label}: seed")
        if not 0 < self.mean_l0 <= self.n_features:
            raise InputError(
                f"{self.label}: mean_l0 must be above 0 and at most {self.n_features}, the number "
                "of features"
            )

    def directions(self) -> Float[Tensor, "n_features d_in"]:
        """The rows d_i, drawn uniformly from the unit sphere."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn((self.n_features, self.d_in), generator=generator)
        return drawn / drawn.norm(dim=1, keepdim=True)

    def probabilities(self) -> Float[Tensor, "n_features"]:
        """The firing probabilities p_i, from the most to the least frequent feature."""
        law = np.arange(1, self.n_features + 1, dtype=np.float64) ** -self.decay
        if self.mean_l0 == self.n_features:
            return torch.ones(self.n_features)

        def excess(log_a: float) -> float:
            return float(np.minimum(1.0, np.exp(log_a) * law).sum() - self.mean_l0)

        low = math.log(self.mean_l0 / law.sum())  # here at most mean_l0, as some are capped at 1
        log_a = brentq(excess, low - 1e-9, -math.log(law[-1]))
        return torch.from_numpy(np.minimum(1.0, np.exp(log_a) * law)).float()

    @typed()
    def sample(
        self, n: int, seed: int
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n n_features"]]:
        """Tokens x and their true codes c; `seed` chooses the tokens alone.

        Raises:
            InputError: no tokens, or no seed.
        """
        if n < 1:
            raise InputError(f"{self.label}: the number of tokens must be positive, got {n}")
        seed = fit_seed(seed, f"{self.label}: seed")
        generator = torch.Generator().manual_seed(seed)
        shape = (n, self.n_features)
        fires = torch.rand(shape, generator=generator) < self.probabilities()
        codes = fires * torch.randn(shape, generator=generator).abs()
        x = codes @ self.directions()
        if self.noise > 0:
            drawn = torch.randn((n, self.d_in), generator=generator)
            x = x + drawn * (self.noise / math.sqrt(self.d_in))
        return x, codes

    @typed()
    def cache(self, rows: int, seed: int, held_out: float = 0.1) -> ActivationCache:
        """`rows` training tokens, and the share `held_out` of all rows more for evaluation.

        Raises:
            InputError: no rows, or no share below 1.
        """
        if not (rows >= 1 and 0 <= held_out < 1):
            raise InputError(
                f"{self.label}: rows must be a positive integer and held_out a share in [0, 1), "
                f"got {rows!r:.40} and {held_out!r:.40}"
            )
        total = math.ceil(rows / (1 - held_out))
        x, _ = self.sample(total, seed)
        return ActivationCache.from_tensor(x, held_out=(total - rows) / total, name=self.label)


def closest(
    decoder: Float[Tensor, "d_sae d_in"], features: Float[Tensor, "n d_in"]
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """The largest cosine of each true feature with any decoder row, and which row that is."""
    rows = torch.nn.functional.normalize(decoder.float(), dim=1)
    cosines = torch.nn.functional.normalize(features.float(), dim=1) @ rows.T
    best = cosines.max(dim=1)
    return best.values, best.indices


def recovery(
    decoder: Float[Tensor, "d_sae d_in"], features: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n"]:
    """How well each true feature is found: its largest cosine with any decoder row."""
    return closest(decoder, features)[0]
