"""The conformance suite for kernels."""

import math

import torch

from sae_bench.kernels import Kernel
from sae_bench.suite import ComponentSuite

KERNEL: ComponentSuite[Kernel] = ComponentSuite(Kernel)


@KERNEL.first
def is_elementwise(kernel: Kernel) -> None:
    """The density of a tensor is a tensor of its shape and type."""
    for dtype in (torch.float32, torch.float64):
        u = torch.zeros(2, 3, dtype=dtype)
        k = kernel.density(u)
        assert isinstance(k, torch.Tensor), f"`density` must return a tensor, got {type(k)}"
        assert (k.shape, k.dtype) == (u.shape, u.dtype), (
            f"`density` of {dtype} of shape (2, 3) must be the same, got {k.dtype} of shape "
            f"{tuple(k.shape)}"
        )


def _moments(kernel: Kernel) -> dict[str, float]:
    end = kernel.reach + 0.5
    u = torch.linspace(-end, end, 400_001, dtype=torch.float64)
    k, du = kernel.density(u).numpy(), (u[1] - u[0]).item()
    v = u.numpy()
    return {
        "integral": float(k.sum() * du),
        "roughness": float((k**2).sum() * du),
        "variance": float((v**2 * k).sum() * du),
        "half_mean": float((v * k)[v > 0].sum() * du),
    }


@KERNEL
def integrates_to_one(kernel: Kernel) -> None:
    """The density over u has unit integral."""
    found = _moments(kernel)["integral"]
    assert math.isclose(found, 1, abs_tol=1e-4), f"`density` integrates to {found:.5f}, not 1"


@KERNEL
def states_its_moments(kernel: Kernel) -> None:
    """roughness, variance and half_mean are the density's."""
    found = _moments(kernel)
    for name in ("roughness", "variance", "half_mean"):
        stated = getattr(kernel, name)
        assert math.isclose(stated, found[name], abs_tol=1e-4), (
            f"{name} is stated as {stated:.5f}, the density has {found[name]:.5f}"
        )


@KERNEL
def is_a_symmetric_density_within_its_support(kernel: Kernel) -> None:
    """K(u) = K(-u) >= 0, and 0 beyond the support."""
    u = torch.linspace(0, 10, 10_001, dtype=torch.float64)
    assert torch.allclose(kernel.density(u), kernel.density(-u)), "K(u) and K(-u) differ"
    assert (kernel.density(u) >= 0).all(), "K must not be negative"
    assert (kernel.density(u[u > kernel.support]) == 0).all(), "K > 0 beyond the stated support"
