"""Kernels: the window through which a threshold sees pre-activations.

A kernel K has unit integral over u = (pre - threshold) / bandwidth. The pseudo-derivative of the
Heaviside step is K(u) / bandwidth (arXiv 2407.14435, section 3 and appendix on kernels).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.components import Component
from sae_bench.errors import InputError


@dataclass(frozen=True)
class Kernel(Component):
    """A symmetric density K(u) of unit integral, and the bandwidth epsilon that turns a distance
    from the threshold into u.

    Constants: `roughness` R = int K^2, `variance` mu2 = int u^2 K, `half_mean` m1 =
    int_0^inf u K, `support` = largest |u| with K(u) > 0. Equal bandwidth is not equal width: the
    standard deviation of the window is bandwidth * sqrt(variance).

    Raises:
        InputError: the bandwidth is not a positive number.
    """

    bandwidth: float = 1e-3

    units: ClassVar = {"bandwidth": 1}
    roughness: ClassVar[float]
    variance: ClassVar[float]
    half_mean: ClassVar[float]
    support: ClassVar[float]

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise InputError(
                f"{type(self).__name__}: the bandwidth must be positive, got {self.bandwidth}"
            )

    @classmethod
    def of_width(cls, standard_deviation: float) -> "Kernel":
        """The kernel whose window has this standard deviation, in units of the pre-activations."""
        return cls(standard_deviation / math.sqrt(cls.variance))

    @property
    def reach(self) -> float:
        """Largest |u| that is looked at: the support, or 6 where it is infinite (the Gaussian keeps
        all but 2e-9 of its mass)."""
        return min(self.support, 6.0)

    @abstractmethod
    def density(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """K(u), dimensionless."""

    def window(self, distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """K(distance / bandwidth) / bandwidth, for distance = pre - threshold."""
        return self.density(distance / self.bandwidth) / self.bandwidth


@dataclass(frozen=True)
class Rectangle(Kernel):
    """K(u) = 1 for |u| < 1/2: the paper's choice."""

    roughness, variance, half_mean, support = 1.0, 1 / 12, 1 / 8, 0.5

    def density(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1[|u| < 1/2]."""
        return (u.abs() < 0.5).to(u.dtype)


@dataclass(frozen=True)
class Triangle(Kernel):
    """K(u) = 1 - |u| for |u| < 1."""

    roughness, variance, half_mean, support = 2 / 3, 1 / 6, 1 / 6, 1.0

    def density(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """max(1 - |u|, 0)."""
        return (1 - u.abs()).clamp_min(0)


@dataclass(frozen=True)
class Epanechnikov(Kernel):
    """K(u) = 3/4 (1 - u^2) for |u| < 1."""

    roughness, variance, half_mean, support = 3 / 5, 1 / 5, 3 / 16, 1.0

    def density(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """max(3/4 (1 - u^2), 0)."""
        return (0.75 * (1 - u.square())).clamp_min(0)


@dataclass(frozen=True)
class Gaussian(Kernel):
    """The standard normal density."""

    roughness = 1 / (2 * math.sqrt(math.pi))
    variance = 1.0
    half_mean = 1 / math.sqrt(2 * math.pi)
    support = math.inf

    def density(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """exp(-u^2 / 2) / sqrt(2 pi)."""
        return torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
