"""The jump and its pseudo-derivatives: the only place where autograd is told something untrue."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.estimator import Estimator
from sae_bench.sparse import Deferred, Sparse, gathered


class _Jump(torch.autograd.Function):
    """(pre, theta) -> (pre * H(pre - theta), H(pre - theta)); see `jump`."""

    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, theta: Tensor, estimator: Estimator
    ) -> tuple[Tensor, Tensor]:
        step = (pre > theta).to(pre.dtype)
        ctx.save_for_backward(pre, theta, step)
        ctx.estimator = estimator
        ctx.set_materialize_grads(False)
        return pre * step, step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        grad_f, grad_step = grads
        if grad_f is None and grad_step is None:
            return None, None, None
        pre, theta, step = ctx.saved_tensors
        needs_pre, needs_theta, _ = ctx.needs_input_grad
        grad_pre = grad_f * step if grad_f is not None else None
        if not needs_theta and not ctx.estimator.to_input:
            return grad_pre, None, None
        # (theta g_f + g_H) K(u) / eps, per token and latent
        pull = ctx.estimator.kernel.window(pre - theta)
        if grad_f is None:
            pull = pull * grad_step
        elif grad_step is None:
            pull = pull * (theta * grad_f)
        else:
            pull = pull * torch.addcmul(grad_step, theta, grad_f)
        if needs_pre and ctx.estimator.to_input:
            grad_pre = pull if grad_pre is None else grad_pre + pull
        grad_theta = -pull.sum_to_size(theta.shape) if needs_theta else None
        return grad_pre, grad_theta, None


def jump(
    pre: Float[Tensor, "batch d_sae"],
    theta: Float[Tensor, " d_sae"] | Float[Tensor, ""],
    estimator: Estimator,
) -> tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_sae"]]:
    """JumpReLU codes and the Heaviside step, sharing one pseudo-derivative.

    Forward: step = 1[pre > theta] (strict), f = pre * step.

    Backward, with K, eps the estimator's kernel and u = (pre - theta) / eps
    (arXiv 2407.14435, equations 11-12; `pre`, never f or ReLU(pre), enters the window):
        df/dpre = step            (+ (theta / eps) K(u) if estimator.to_input)
        dH/dpre = 0               (+ (1 / eps) K(u) if estimator.to_input)
        df/dtheta = -(theta / eps) K(u)
        dH/dtheta = -(1 / eps) K(u)

    With theta = 0 this is the ReLU.

    Returns:
        f: codes, in units of pre.
        step: 0 or 1, dimensionless.
    """
    if not isinstance(pre, Deferred):
        return _Jump.apply(pre, theta, estimator)
    support = pre.around(theta)
    f, step = _Jump.apply(pre.at(support), gathered(theta, support), estimator)
    return Sparse(support, f), Sparse(support, step)
