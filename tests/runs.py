"""One small grid on one tiny language model, for the tests of runs."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from architectures import TopKSAE
from sae_bench.activations import TopK
from sae_bench.arm import Arm, grid
from sae_bench.run import run
from sae_bench.source import ActivationSource
from tests.grids import RECIPE, four_architectures
from tests.tiny import tiny_model

MODULE = import_module("sae_bench.run")  # the package has a function of this name
LLAMA = tiny_model("llama")
LM_TOKENS = 150
SHORT = RECIPE.replace(tokens=320)
ARMS = [*four_architectures(), *grid(TopKSAE, d_sae=16, activation=TopK(3), recipe=SHORT)]


def start(
    cache: ActivationSource, out: Path, arms: list[Arm] = ARMS, **options: Any
) -> pd.DataFrame:
    return run(arms, cache, **{"out": out, "device": "cpu", "lm_tokens": LM_TOKENS, **options})


def forbidden(*_: Any, **__: Any) -> None:
    pytest.fail("was called")
