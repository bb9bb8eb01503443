"""Estimators of the gradient with respect to thresholds.

Every estimator is built around a kernel. The batch estimator of arXiv 2407.14435 needs nothing
but the present batch: its gradient is what `loss.total.backward()` leaves in the threshold.
"""

from dataclasses import dataclass

from sae_bench.components import Component
from sae_bench.kernels import Kernel, Rectangle


@dataclass(frozen=True)
class Estimator(Component):
    """One object decides the pseudo-derivative of the jump, for activation and penalty alike.

    Args:
        kernel: window around the threshold.
        to_input: also pass the pseudo-derivative to the pre-activations ("straight-through to the
            input"): dJumpReLU/dpre += (theta/eps) K and dH/dpre += (1/eps) K. Both or neither:
            with only the second the gradient can have the wrong sign.
    """

    kernel: Kernel = Rectangle()
    to_input: bool = False


@dataclass(frozen=True)
class BatchKDE(Estimator):
    """The paper's estimator: a kernel density estimate over the present batch, without state.

    With g_f = dL/df and g_H = dL/dH per token a, and u = (pre - theta) / eps,
    dL/dtheta_i = sum_a -(theta_i g_f + g_H) K(u_ai) / eps (arXiv 2407.14435, equations 11-12).
    """


def as_estimator(kernel: Kernel | Estimator) -> Estimator:
    """A bare kernel means the batch estimator around it."""
    return BatchKDE(kernel) if isinstance(kernel, Kernel) else kernel
