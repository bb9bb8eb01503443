"""Benchmarking and ablation suite for sparse autoencoder architectures."""

import os

# Torch's threads go to sleep soon after their work instead of spinning for milliseconds, in which
# the compiled loops of the sparse path would find no free core. Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from sae_bench.arm import Arm, grid
from sae_bench.cache import ActivationCache
from sae_bench.calibrate import calibrate
from sae_bench.component_checks import (
    check_activation,
    check_decoder,
    check_estimator,
    check_kernel,
    check_penalty,
)
from sae_bench.conformance import check_architecture
from sae_bench.conversion import to_gated, to_jumprelu
from sae_bench.errors import InputError
from sae_bench.evaluate import evaluate
from sae_bench.hub_upload import push_to_hub
from sae_bench.loading import load_sae, save_sae
from sae_bench.recipe import Recipe
from sae_bench.released import Released
from sae_bench.run import run
from sae_bench.sae import SparseAutoencoder
from sae_bench.stream import ActivationStream

__all__ = [
    "ActivationCache",
    "ActivationStream",
    "Arm",
    "InputError",
    "Recipe",
    "Released",
    "SparseAutoencoder",
    "calibrate",
    "check_activation",
    "check_architecture",
    "check_decoder",
    "check_estimator",
    "check_kernel",
    "check_penalty",
    "evaluate",
    "grid",
    "load_sae",
    "push_to_hub",
    "run",
    "save_sae",
    "to_gated",
    "to_jumprelu",
]
