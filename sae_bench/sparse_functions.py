"""The two matrix products around the codes, with gradients that touch only entries."""

from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from sae_bench.support import Support


class _Encoded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor, b_dec: Tensor, support: Support, value: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, W, b_dec)
        ctx.support = support
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, W, b_dec), support = grads, ctx.saved_tensors, ctx.support
        needs_x, needs_W, *_ = ctx.needs_input_grad
        grad_b = sums_of_latents(grad, support)
        grad_x = grad_W = None
        if needs_x:
            grad_x = support.times(grad, W.T, x.new_zeros(1, x.shape[1]))
        if needs_W:
            grad_W = support.transposed_times(grad, x, -grad_b, b_dec[None]).T
        return grad_x, grad_W, grad_b, -(W @ grad_b), None, None


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, value: Tensor, W: Tensor, support: Support) -> Tensor:
        ctx.save_for_backward(value, W)
        ctx.support, ctx.is_shared = support, base.ndim == 1
        return support.times(value, W, base[None] if ctx.is_shared else base)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (value, W), support = grads, ctx.saved_tensors, ctx.support
        needs_base, needs_value, needs_W, _ = ctx.needs_input_grad
        grad_base = grad_value = grad_W = None
        if needs_base:
            grad_base = grad.sum(0) if ctx.is_shared else grad
        if needs_value:
            grad_value = support.products(grad, W)
        if needs_W:
            zero = W.new_zeros(1)
            grad_W = support.transposed_times(value, grad, zero, zero.expand(1, W.shape[1]))
        return grad_base, grad_value, grad_W, None


def encoded(
    x: Float[Tensor, "tokens d_in"],
    W: Float[Tensor, "d_in width"],
    b: Float[Tensor, " width"],
    b_dec: Float[Tensor, " d_in"],
    support: Support,
    value: Float[Tensor, " entries"],
) -> Float[Tensor, " entries"]:
    """The entries of (x - b_dec) W + b, which are `value`, as a function of the others."""
    return _Encoded.apply(x, W, b, b_dec, support, value)


def decoded(
    base: Float[Tensor, " d"] | Float[Tensor, "tokens d"],
    value: Float[Tensor, " entries"],
    W: Float[Tensor, "width d"],
    support: Support,
) -> Float[Tensor, "tokens d"]:
    """base + M W, M the matrix with these entries."""
    return _Decoded.apply(base, value, W, support)


def sums_of_latents(value: Num[Tensor, " entries"], support: Support) -> Num[Tensor, " width"]:
    """The sum of each column."""
    return value.new_zeros(support.width).index_add(0, support.latents, value)


def sums_of_tokens(value: Num[Tensor, " entries"], support: Support) -> Num[Tensor, " tokens"]:
    """The sum of each row."""
    return value.new_zeros(support.rows).index_add(0, support.tokens, value)
