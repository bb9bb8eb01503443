"""The conformance suite for penalties."""

import torch
from torch import Tensor

from sae_bench.activations import Latents
from sae_bench.penalties import Penalty
from sae_bench.suite import ComponentSuite

PENALTY: ComponentSuite[Penalty] = ComponentSuite(Penalty)


def _latents(batch: int = 32, d_sae: int = 12) -> tuple[Latents, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(batch, d_sae, generator=generator, dtype=torch.float64)
    step = (pre > 0.3).to(pre.dtype)
    W_dec = torch.randn(d_sae, 5, generator=generator, dtype=torch.float64)
    return Latents(pre, pre * step, step), W_dec


@PENALTY.first
def is_a_mean_over_the_batch(penalty: Penalty) -> None:
    """A scalar that a repeated batch does not change."""
    latents, W_dec = _latents()
    value = penalty.value(latents, W_dec)
    shape = tuple(getattr(value, "shape", (type(value).__name__,)))
    assert shape == (), f"`value` must return a tensor without dimensions, got {shape}"
    assert value.isfinite(), f"`value` must be finite, got {value.item()}"
    twice = penalty.value(Latents(*(torch.cat([tensor, tensor]) for tensor in latents)), W_dec)
    assert torch.allclose(twice, value), (
        f"average over the batch: its value is {value.item():.4g}, repeated {twice.item():.4g}"
    )


@PENALTY
def charges_and_does_not_pay(penalty: Penalty) -> None:
    """It is not negative, and the same each time."""
    latents, W_dec = _latents()
    value = penalty.value(latents, W_dec)
    assert value >= 0, f"`value` must not be negative, got {value.item():.4g}: check its sign"
    again = penalty.value(latents, W_dec)
    assert torch.equal(again, value), "the same batch must cost the same: keep no memory in it"


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
    used = leaves[1].grad is not None
    assert penalty.through_step == used, (
        f"set through_step = {used}: `value` uses `latents.step`"
        if used
        else "set through_step = False: `value` does not use `latents.step`"
    )


# -- what estimators that look at single samples are told -----------------------------------------


@PENALTY
def states_its_slope(penalty: Penalty) -> None:
    """`slope`, where defined, is the derivative with respect to the codes."""
    if not penalty.defines("slope"):
        return
    (pre, f, step), W_dec = _latents()
    leaf = f.clone().requires_grad_()
    value = penalty.value(Latents(pre, leaf, step), W_dec)
    wanted = torch.autograd.grad(value, leaf)[0] * len(f) if value.requires_grad else f * 0
    _compare("slope", penalty.slope(f, W_dec.norm(dim=1).expand_as(f)), wanted, f)


@PENALTY
def states_its_jump(penalty: Penalty) -> None:
    """`jump`, where defined, is what a code of theta costs, against a code of 0."""
    if not penalty.defines("jump"):
        return
    (pre, f, step), W_dec = _latents(batch=1)
    theta = torch.linspace(0.1, 0.9, f.shape[1], dtype=f.dtype)
    found = penalty.jump(theta, W_dec.norm(dim=1))
    off = penalty.value(Latents(pre, torch.zeros_like(f), step), W_dec)
    each = [theta * unit for unit in torch.eye(len(theta), dtype=f.dtype)]
    on = torch.stack([penalty.value(Latents(pre, code[None], step), W_dec) for code in each])
    _compare("jump", found, on - off, theta)


@PENALTY
def states_its_step_curvature(penalty: Penalty) -> None:
    """`step_curvature` is the second difference of a token's cost in one of its steps, for large
    batches."""
    (pre, f, step), W_dec = _latents()

    def second_difference(copies: int) -> Tensor:
        batch = [tensor.repeat(copies, 1) for tensor in (pre, f, step)]
        costs = []
        for amount in (0.0, 1.0, 2.0):
            changed = batch[2].clone()
            changed[0, 0] = amount
            costs.append(penalty.value(Latents(batch[0], batch[1], changed), W_dec))
        return len(batch[0]) * (costs[0] - 2 * costs[1] + costs[2])

    # what is left in penalties on batch means falls as 1 / N: extrapolated away
    found = (2 * second_difference(2) - second_difference(1)).item()
    assert abs(found - penalty.step_curvature) < 1e-6 * (1 + abs(found)), (
        f"step_curvature is stated as {penalty.step_curvature:.5g}, `value` has {found:.5g}"
    )


def _compare(name: str, stated: Tensor, measured: Tensor, at: Tensor) -> None:
    assert isinstance(stated, Tensor), f"`{name}` must return a tensor, got {stated!r:.40}"
    stated = stated.expand_as(measured)
    worst = (stated - measured).abs().nan_to_num(torch.inf).argmax()
    numbers = [tensor.flatten()[worst].item() for tensor in (stated, at, measured)]
    assert torch.allclose(stated, measured), (
        "`{}` is stated as {:.5g} at {:.5g}, `value` has {:.5g} there; leave `slope` and `jump` "
        "undefined if the cost of a code depends on other codes".format(name, *numbers)
    )
