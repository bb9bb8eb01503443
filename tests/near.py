"""Samples near thresholds whose truth is known, and SAEs that take one step of an estimator."""

import math

import torch
from torch import Tensor

from sae_bench.activations import JumpReLU, RawThreshold, ThresholdForm
from sae_bench.estimators import (
    BatchKDE,
    Estimator,
    ExactJump,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    SpreadRule,
    StraightThrough,
    TargetCount,
    WindowKDE,
)
from sae_bench.kernels import Kernel, Rectangle
from sae_bench.penalties import L0, Penalty
from sae_bench.sae import SparseAutoencoder
from sae_bench.samples import Coefficient, Present, Samples

COEFFICIENTS = [StraightThrough(), ExactJump()]


def stateful(kernel: Kernel, coefficient: Coefficient, steps: int = 4) -> list[Estimator]:
    """Every estimator that remembers, around one kernel."""
    inner = [
        MomentumKDE(kernel, steps=steps, coefficient=coefficient),
        MeanKDE(kernel, steps=steps, coefficient=coefficient),
        WindowKDE(kernel, steps=steps, coefficient=coefficient),
    ]
    return [
        *inner,
        PersistentBandwidth(BatchKDE(kernel, coefficient=coefficient), SpreadRule()),
        *(PersistentBandwidth(estimator, TargetCount()) for estimator in inner),
    ]


EVERY = [
    BatchKDE(Rectangle(0.2), coefficient=ExactJump()),
    *(estimator for c in COEFFICIENTS for estimator in stateful(Rectangle(0.2), c)),
]


# -- whole SAEs -----------------------------------------------------------------------------------


def sae_of(
    penalty: Penalty, kernel: Kernel | Estimator, form: ThresholdForm = RawThreshold(0.2)
) -> SparseAutoencoder:
    """4 inputs, 6 latents, float64; rows that are not of unit norm, thresholds that differ."""
    sae = SparseAutoencoder(
        4, 6, activation=JumpReLU(form), penalty=penalty, kernel=kernel
    ).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.abs())
    return sae


def inputs(tokens: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 4, generator=generator, dtype=torch.float64)


def threshold_gradient(sae: SparseAutoencoder, x: Tensor, scale: float = 1.0) -> Tensor:
    """What one optimiser step finds in the threshold's parameter (a raw one: dL/dtheta)."""
    sae.zero_grad()
    loss = sae.loss(x, scale)
    loss.latents.f.retain_grad()
    loss.total.backward()
    sae.estimate_(loss, scale)
    (parameter,) = sae.threshold_parameters
    assert parameter.grad is not None
    return parameter.grad.clone()


def present_of(sae: SparseAutoencoder, scale: float = 1.0) -> Present:
    theta = sae.threshold
    assert theta is not None
    scale = scale * sae.penalty.coefficient
    with torch.no_grad():
        return Present(
            theta.detach().clone(), sae.W_dec.norm(dim=1), sae.curvature(), sae.penalty, scale
        )


# -- isolated latents: pre = z, e = D z + interference, penalty lambda L0 -------------------------


def isolated(
    z: Tensor, theta: float, charge: float, D: float = 1.0, interference: Tensor | float = 0.0
) -> tuple[Samples, Present]:
    """Samples of latents (the columns of z, (tokens, latents)) that only the interference links to
    others; ||d||^2 = D, penalty `charge` * L0."""
    tokens, latents = z.shape
    latent = torch.arange(latents).expand(tokens, latents)
    projection = D * z + interference
    flat = [t.flatten() for t in (latent, z, projection, torch.ones_like(z), torch.ones_like(z))]
    every = torch.ones(latents, dtype=z.dtype)
    present = Present(theta * every, math.sqrt(D) * every, D * every, L0(charge), charge)
    return Samples(*flat), present


def near(samples: Samples, present: Present, reach: float | Tensor) -> Samples:
    """Those within reach of their threshold: what an SAE hands to its estimator."""
    if isinstance(reach, Tensor):
        reach = reach[samples.latent]
    kept = (samples.pre - present.theta[samples.latent]).abs() <= reach
    return Samples(*(column[kept] for column in samples))


def normal_quantiles(tokens: int, mean: float, deviation: float) -> Tensor:
    """A sample of a normal distribution without sampling noise: its quantiles, (tokens,)."""
    u = (torch.arange(tokens, dtype=torch.float64) + 0.5) / tokens
    return mean + deviation * torch.special.ndtri(u)
