"""Figures 1, 3 and 4 are computed by what trains: held against the closed form of their example."""

import pytest
import torch

from ablations._paper_schematics import THETA, Toy, pseudo_derivatives
from sae_bench.kernels import Rectangle, Triangle


def test_backward_estimates_the_closed_form() -> None:
    toy, theta = Toy(), torch.tensor([0.7, 0.9, 1.1])
    x, _ = toy.sample(400_000)
    found = toy.estimate(x, theta, Rectangle(0.05))
    assert found.numpy() == pytest.approx(toy.gradient(theta).numpy(), abs=0.02)
    assert toy.gradient(torch.tensor([THETA])).item() == 0
    x = torch.linspace(-2, 3, 5001)
    assert torch.trapezoid(toy.density(x), x).item() == pytest.approx(1, abs=1e-3)


def test_pseudo_derivatives_are_windows() -> None:
    pre, kernel = torch.linspace(0, 1, 101), Triangle(0.2)
    code, step = pseudo_derivatives(pre, THETA, kernel)
    window = kernel.window(pre - THETA)
    assert torch.allclose(step, -window)
    assert torch.allclose(code, -THETA * window)
