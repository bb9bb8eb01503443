"""Conformance suites for components of your own: `check_penalty(MyPenalty(0.1))` and the like."""

from sae_bench.activation_checks import ACTIVATION
from sae_bench.decoder_checks import DECODER
from sae_bench.estimator_checks import ESTIMATOR
from sae_bench.kernel_checks import KERNEL
from sae_bench.penalty_checks import PENALTY

SUITES = (ACTIVATION, PENALTY, KERNEL, ESTIMATOR, DECODER)


def check_activation(activation: object) -> None:
    """Runs all checks on an activation; see `Suite.run` for what is raised."""
    ACTIVATION.run(activation)


def check_penalty(penalty: object) -> None:
    """Runs all checks on a penalty; see `Suite.run` for what is raised."""
    PENALTY.run(penalty)


def check_kernel(kernel: object) -> None:
    """Runs all checks on a kernel; see `Suite.run` for what is raised."""
    KERNEL.run(kernel)


def check_estimator(estimator: object) -> None:
    """Runs all checks on an estimator; see `Suite.run` for what is raised."""
    ESTIMATOR.run(estimator)


def check_decoder(decoder: object) -> None:
    """Runs all checks on a decoder constraint; see `Suite.run` for what is raised."""
    DECODER.run(decoder)
