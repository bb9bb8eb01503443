"""The schematics of the JumpReLU paper (arXiv 2407.14435, figures 1, 3 and 4), computed by the
functions that train: `surrogate.jump`, its kernels, and autograd.

All are of one latent, whose direction is known: x is its pre-activation and what it should give.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sae_bench import plots
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Epanechnikov, Gaussian, Kernel, Rectangle, Triangle
from sae_bench.plots import COLOURS, SPARE
from sae_bench.surrogate import jump

THETA = 0.5
KERNELS: Sequence[tuple[type[Kernel], str]] = (
    (Rectangle, COLOURS["JumpReLU"]),
    (Triangle, SPARE[0]),
    (Epanechnikov, SPARE[3]),
    (Gaussian, SPARE[1]),
)
"""In the colours of figure 17."""


@dataclass(frozen=True)
class Toy:
    """x is off, N(0, `off`^2), or with probability `active` on, N(1, `on`^2); the loss of a token
    is (x - f)^2 + penalty H(x - theta) with f = JumpReLU(x)."""

    active: float = 0.2
    off: float = 0.15
    on: float = 0.25
    penalty: float = THETA**2

    def sample(self, n: int, seed: int = 0) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """x, and what of it is on."""
        generator = torch.Generator().manual_seed(seed)
        is_on = torch.rand(n, generator=generator) < self.active
        noise = torch.randn(n, generator=generator)
        x = torch.where(is_on, 1 + self.on * noise, self.off * noise)
        return x, x * is_on

    def density(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """p(x)."""
        kinds = ((1 - self.active, 0.0, self.off), (self.active, 1.0, self.on))
        return sum(
            (
                share * torch.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
                for share, mean, sd in kinds
            ),
            torch.zeros_like(x),
        )

    def gradient(self, theta: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """dE[loss]/dtheta = p(theta) (theta^2 - penalty): a token that falls silent costs theta^2
        and saves the penalty."""
        return self.density(theta) * (theta.square() - self.penalty)

    def loss(
        self, x: Float[Tensor, " n"], theta: Float[Tensor, " m"], kernel: Kernel
    ) -> Float[Tensor, "n m"]:
        """Of each token at each threshold."""
        f, step = jump(x[:, None].expand(-1, len(theta)), theta, BatchKDE(kernel))
        return (x[:, None] - f).square() + self.penalty * step

    def estimate(
        self, x: Float[Tensor, " n"], theta: Float[Tensor, " m"], kernel: Kernel
    ) -> Float[Tensor, " m"]:
        """What backward leaves in each threshold: the kernel density estimate of `gradient`."""
        theta = theta.clone().requires_grad_()
        self.loss(x, theta, kernel).mean(0).sum().backward()
        assert theta.grad is not None
        return theta.grad


def pseudo_derivatives(
    pre: Float[Tensor, " n"], theta: float, kernel: Kernel
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """dJumpReLU/dtheta and dH/dtheta at each pre, as backward has them."""
    found = []
    for part in (0, 1):
        thetas = torch.full_like(pre, theta).requires_grad_()
        jump(pre[None], thetas, BatchKDE(kernel))[part].sum().backward()
        assert thetas.grad is not None
        found.append(thetas.grad)
    return found[0], found[1]


def _encoders() -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """Colour and code of a latent, by name; a ReLU is a jump at 0."""
    zero, theta = torch.zeros(1), torch.tensor([THETA])

    def code(pre: Tensor, threshold: Tensor) -> Tensor:
        return jump(pre[:, None], threshold, BatchKDE())[0][:, 0]

    return {
        "ReLU": (COLOURS["ReLU"], lambda pre: code(pre, zero)),
        "ReLU, bias $-\\theta$": (SPARE[0], lambda pre: code(pre - THETA, zero)),
        "JumpReLU, threshold $\\theta$": (COLOURS["JumpReLU"], lambda pre: code(pre, theta)),
    }


@mpl.rc_context(plots.STYLE)
def activations() -> Figure:
    """Figure 1: a ReLU either lets noise through or shrinks what is on; JumpReLU does neither.

    Left: codes against pre-activations. Right: histograms of the codes that fire on the toy data,
    over that of what is on."""
    drawn = plots.figure(6.8, 2.6, 1, 2)
    left, right = drawn.axes
    pre, (x, truth) = torch.linspace(-0.5, 1.5, 1001), Toy().sample(50_000)
    edges = np.linspace(0, 2, 61)
    right.stairs(
        np.histogram(truth[truth > 0], edges)[0], edges, fill=True, color="#dddddd", label="truth"
    )
    for name, (colour, code) in _encoders().items():
        left.plot(pre, code(pre), color=colour, linewidth=1.3, label=name)
        fired = code(x)
        counts = np.histogram(fired[fired > 0], edges)[0]
        right.stairs(counts, edges, color=colour, linewidth=1.2, label=name)
    left.axvline(THETA, color="grey", linestyle=":", linewidth=0.8)
    left.text(THETA + 0.03, 1.35, "$\\theta$", color="grey")
    left.set(xlabel="pre-activation", ylabel="code")
    right.set(xlabel="code", ylabel="tokens", yscale="log")
    return plots.legend_below(drawn, right, columns=4, size=7)


@mpl.rc_context(plots.STYLE)
def jumps() -> Figure:
    """Figure 3: JumpReLU and the Heaviside step (black), and their pseudo-derivatives in theta
    through four windows of equal bandwidth."""
    drawn = plots.figure(6.8, 2.6, 1, 2)
    pre, theta = torch.linspace(-0.1, 1.1, 1201), torch.tensor([THETA])
    values = jump(pre[:, None], theta, BatchKDE())
    for axes, value in zip(drawn.axes, values, strict=True):
        axes.plot(pre, value[:, 0], color="black", linewidth=1.3, label="value")
    for kernel, colour in KERNELS:
        slopes = pseudo_derivatives(pre, THETA, kernel(0.2))
        for axes, slope in zip(drawn.axes, slopes, strict=True):
            axes.plot(pre, slope, color=colour, linewidth=1.1, label=kernel.__name__)
    for axes, name in zip(drawn.axes, ("JumpReLU", "Heaviside step"), strict=True):
        axes.set_title(f"{name} and d/d$\\theta$", fontsize=8)
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set(xlabel=f"pre-activation ($\\theta$ = {THETA}, $\\epsilon$ = 0.2)")
    drawn.axes[0].set_ylabel("value, and slope in $\\theta$")
    return plots.legend_below(drawn, drawn.axes[0], columns=5, size=7)


@mpl.rc_context(plots.STYLE)
def losses() -> Figure:
    """Figure 4: losses of single tokens are steps in theta, their mean is smooth, and its slope is
    a density at the threshold, which a kernel estimates.

    Left: three tokens, and the mean of 50,000. Right: dE[loss]/dtheta in closed form, and what
    backward gives on a batch of 4,096 with a narrow and a wide window."""
    toy, drawn = Toy(), plots.figure(6.8, 2.6, 1, 2)
    left, right = drawn.axes
    theta, narrow, wide = torch.linspace(0.2, 1.5, 261), Rectangle(0.04), Rectangle(0.3)
    for x, colour in zip((0.35, 0.7, 1.1), SPARE, strict=False):
        one = toy.loss(torch.tensor([x]), theta, narrow)[0]
        left.plot(theta, one, color=colour, linewidth=0.9, label=f"token, x = {x:g}")
    mean = toy.loss(toy.sample(50_000)[0], theta, narrow).mean(0)
    left.plot(theta, mean, color="black", linewidth=1.5, label="mean")
    left.set(xlabel="$\\theta$", ylabel="loss")
    left.legend(fontsize=6.5)
    batch, _ = toy.sample(4096, seed=1)
    for kernel, colour, words in (
        (narrow, SPARE[1], "narrow"),
        (wide, COLOURS["JumpReLU"], "wide"),
    ):
        label = f"{words}, $\\epsilon$ = {kernel.bandwidth:g}"
        slope = toy.estimate(batch, theta, kernel)
        right.plot(theta, slope, color=colour, linewidth=1.0, label=label)
    right.plot(theta, toy.gradient(theta), color="black", linewidth=1.5, label="closed form")
    right.axhline(0, color="grey", linewidth=0.5)
    right.set(xlabel="$\\theta$", ylabel="d E[loss] / d $\\theta$")
    right.legend(fontsize=6.5)
    return drawn


def schematics() -> dict[str, Figure]:
    """All three, by file name."""
    return {"figure_01": activations(), "figure_03": jumps(), "figure_04": losses()}
