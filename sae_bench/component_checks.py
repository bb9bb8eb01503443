"""Conformance suites for kernels, penalties and estimators of your own."""

import json
import math

import numpy as np
import torch
from torch import Tensor

from sae_bench.activations import JumpReLU, Latents, RawThreshold
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.components import Component, from_record
from sae_bench.estimator import Estimator
from sae_bench.kernels import Kernel
from sae_bench.penalties import L0, Penalty
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.suite import Suite
from sae_bench.train import train

KERNEL: Suite[Kernel] = Suite("Kernel", lambda thing: isinstance(thing, Kernel))
PENALTY: Suite[Penalty] = Suite("Penalty", lambda thing: isinstance(thing, Penalty))
ESTIMATOR: Suite[Estimator] = Suite("Estimator", lambda thing: isinstance(thing, Estimator))
SUITES = (PENALTY, KERNEL, ESTIMATOR)


def check_kernel(kernel: object) -> None:
    """Runs all checks on a kernel; see `Suite.run` for what is raised."""
    KERNEL.run(kernel)  # type: ignore[arg-type]


def check_penalty(penalty: object) -> None:
    """Runs all checks on a penalty; see `Suite.run` for what is raised."""
    PENALTY.run(penalty)  # type: ignore[arg-type]


def check_estimator(estimator: object) -> None:
    """Runs all checks on an estimator; see `Suite.run` for what is raised."""
    ESTIMATOR.run(estimator)  # type: ignore[arg-type]


def survives_a_record(component: Component) -> None:
    """Its record, through JSON, gives an equal object."""
    record = json.loads(json.dumps(component.record()))
    advice = "make it a frozen dataclass whose fields are plain values or components"
    assert from_record(Component, record) == component, advice


for suite in (KERNEL, PENALTY, ESTIMATOR):
    suite(survives_a_record)


# -- kernels --------------------------------------------------------------------------------------


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


# -- penalties ------------------------------------------------------------------------------------


def _latents(batch: int = 32, d_sae: int = 12) -> tuple[Latents, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(batch, d_sae, generator=generator, dtype=torch.float64)
    step = (pre > 0.3).to(pre.dtype)
    W_dec = torch.randn(d_sae, 5, generator=generator, dtype=torch.float64)
    return Latents(pre, pre * step, step), W_dec


@PENALTY
def is_a_mean_over_the_batch(penalty: Penalty) -> None:
    """A scalar that a repeated batch does not change."""
    latents, W_dec = _latents()
    value = penalty.value(latents, W_dec)
    assert value.ndim == 0, "`value` must be a scalar"
    assert value.isfinite(), "`value` must be finite"
    twice = Latents(*(torch.cat([tensor, tensor]) for tensor in latents))
    assert torch.allclose(penalty.value(twice, W_dec), value), "average over the batch"


@PENALTY
def carries_its_coefficient(penalty: Penalty) -> None:
    """Calling it gives coefficient * value."""
    latents, W_dec = _latents()
    wanted = penalty.coefficient * penalty.value(latents, W_dec)
    assert torch.allclose(penalty(latents, W_dec), wanted), "override `value`, not `__call__`"


@PENALTY
def scales_with_the_activations(penalty: Penalty) -> None:
    """Rescaled by s, on activations s times as large, it charges s^2 times as much, as the
    reconstruction does."""
    (pre, f, step), W_dec = _latents()
    s = 3.0
    before = penalty(Latents(pre, f, step), W_dec)
    after = penalty.rescaled(s)(Latents(s * pre, s * f, step), W_dec)
    assert torch.allclose(after, s**2 * before), (
        "give `units`: the power of the activation scale in which the coefficient (and any other "
        "field) is expressed, e.g. units: ClassVar = {'coefficient': 1} for a sum of codes"
    )


@PENALTY
def has_a_finite_gradient(penalty: Penalty) -> None:
    """With respect to codes and steps, latents that are off included."""
    (pre, f, step), W_dec = _latents()
    leaves = [f.clone().requires_grad_(), step.clone().requires_grad_()]
    value = penalty.value(Latents(pre, *leaves), W_dec)
    if value.requires_grad:
        value.backward()
    for name, leaf in zip(("codes", "steps"), leaves, strict=True):
        assert leaf.grad is None or leaf.grad.isfinite().all(), f"gradient of {name} not finite"
    assert penalty.through_step == (leaves[1].grad is not None), (
        "set through_step = True if and only if `value` uses `latents.step`"
    )


@PENALTY
def states_its_slope(penalty: Penalty) -> None:
    """`slope` is the derivative with respect to the codes (estimators with state need it)."""
    (pre, f, step), W_dec = _latents()
    leaf = f.clone().requires_grad_()
    value = penalty.value(Latents(pre, leaf, step), W_dec)
    wanted = torch.autograd.grad(value, leaf)[0] * len(f) if value.requires_grad else f * 0
    found = penalty.slope(f, W_dec.norm(dim=1).expand_as(f))
    assert torch.allclose(found, wanted), "define `slope(f, norms)`: d value / d f_i of one token"


@PENALTY
def states_its_jump(penalty: Penalty) -> None:
    """`jump` is what a code of theta costs, against a code of 0 (exact-jump coefficients)."""
    (pre, f, step), W_dec = _latents(batch=1)
    theta = torch.full_like(f, 0.4)
    norms = W_dec.norm(dim=1).expand_as(f)
    on, off = (Latents(pre, codes, step) for codes in (theta, torch.zeros_like(f)))
    wanted = penalty.value(on, W_dec) - penalty.value(off, W_dec)
    found = penalty.jump(theta, norms).sum()
    assert torch.allclose(found, wanted), (
        "define `jump(theta, norms)`: the value of a code of theta minus that of a code of 0"
    )


# -- estimators -----------------------------------------------------------------------------------


def _trained(estimator: Estimator, steps: int = 12) -> SparseAutoencoder:
    x = torch.randn(1024, 16, generator=torch.Generator().manual_seed(0)) / 4
    recipe = Recipe(tokens=steps * 128, batch_size=128, lr=1e-3, lr_warmup=0, penalty_warmup=0)
    activation = JumpReLU(RawThreshold(estimator.kernel.bandwidth * 2))
    slots = {"activation": activation, "penalty": L0(1e-3), "kernel": estimator}
    arm = Arm(SparseAutoencoder, 64, recipe, slots=slots)
    cache = ActivationCache.from_tensor(x, held_out=0.0)
    (trained,) = train([arm], cache, device="cpu")
    assert trained.reason is None, f"training ended with: {trained.reason}"
    assert trained.sae is not None
    return trained.sae


@ESTIMATOR
def moves_thresholds(estimator: Estimator) -> None:
    """Some steps of training leave finite thresholds, and not where they started."""
    theta = _trained(estimator).threshold
    assert theta is not None
    assert theta.isfinite().all(), "thresholds are not finite"
    moved = (theta - estimator.kernel.bandwidth * 2).abs().max()
    assert moved > 0, "no threshold moved: does `estimate` return a gradient for each latent?"


@ESTIMATOR
def gives_the_same_bits_again(estimator: Estimator) -> None:
    """Nothing random, nothing kept outside the state."""
    one, two = (_trained(estimator).threshold for _ in range(2))
    assert one is not None
    assert two is not None
    assert np.array_equal(one.detach().numpy(), two.detach().numpy()), (
        "keep memory in the state that goes in and out, never in the object"
    )


@ESTIMATOR
def keeps_its_state_in_tensors_of_fixed_shape(estimator: Estimator) -> None:
    """`init` and `estimate` give the same names, shapes and types, for checkpoints."""
    fresh = estimator.init(64)
    after = {
        name.removeprefix("estimator_"): value
        for name, value in _trained(estimator).named_buffers()
        if name.startswith("estimator_")
    }
    assert fresh.keys() == after.keys(), "`estimate` must return the names that `init` gave"
    for name, value in fresh.items():
        same = (value.shape, value.dtype) == (after[name].shape, after[name].dtype)
        assert same, f"state {name!r} changed its shape or type"
