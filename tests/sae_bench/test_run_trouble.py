"""One arm's trouble in a run is not the others'."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from architectures import ReLUSAE
from sae_bench.activations import Latents
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from tests.grids import RECIPE, lm_cache
from tests.runs import ARMS, LLAMA, MODULE, start


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return lm_cache(LLAMA, tmp_path_factory.mktemp("cache"))


class Unmeasurable(ReLUSAE):
    """Trains well and cannot be evaluated."""

    def latents(self, x: torch.Tensor) -> Latents:
        if not self.training:
            raise RuntimeError("no evaluation\nhere")
        return super().latents(x)


def test_an_arm_that_cannot_be_measured_leaves_the_others_theirs(
    cache: ActivationCache, tmp_path: Path
) -> None:
    odd = Arm(Unmeasurable, 16, RECIPE)
    for _ in range(2):  # the second run tries it again, and it alone
        table = start(cache, tmp_path / "run", [ARMS[0], odd, ARMS[2]], lm_tokens=0)
        assert table["fvu"].notna().tolist() == [True, False, True]
        assert table["status"].tolist() == ["trained"] * 3
        assert table["reason"][1] == "not measured: RuntimeError: no evaluation here"
    assert (tmp_path / "run" / "table.csv").exists()


def test_arms_that_no_memory_holds_together_are_measured_by_halves(
    cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(cache, tmp_path / "whole", ARMS[:5], lm_tokens=0)
    evaluate, train, sizes = MODULE.evaluate, MODULE.train_arms, list[int]()

    def small(saes: list[ReLUSAE], *arguments: Any, **options: Any) -> pd.DataFrame:
        sizes.append(len(saes))
        if len(saes) > 2:
            raise torch.OutOfMemoryError("too many")
        return evaluate(saes, *arguments, **options)

    def watched(*arguments: Any, **options: Any) -> None:
        assert all(trained.sae is None for trained in train(*arguments, **options))

    monkeypatch.setattr(MODULE, "evaluate", small)
    monkeypatch.setattr(MODULE, "train_arms", watched)
    table = start(cache, tmp_path / "parted", ARMS[:5], lm_tokens=0)
    assert sizes == [5, 2, 3, 1, 2]
    pd.testing.assert_frame_equal(
        table.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )


class Greedy(ReLUSAE):
    """Runs out of memory at its twelfth step in this process."""

    left = 12

    def loss_terms(self, *arguments: Any) -> Any:
        Greedy.left -= 1
        if Greedy.left == 0:
            raise torch.OutOfMemoryError("somebody else holds the device")
        return super().loss_terms(*arguments)


def test_running_out_of_memory_costs_no_checkpoint(cache: ActivationCache, tmp_path: Path) -> None:
    arm = Arm(Greedy, 16, RECIPE.replace(tokens=20 * 64))
    options = {"lm_tokens": 0, "checkpoint_every": 0.0}
    table = start(cache, tmp_path / "run", [arm], **options)
    assert table["status"].item() == "failed"
    assert "OutOfMemoryError" in table["reason"].item()
    assert list((tmp_path / "run" / "checkpoints").glob("*/*.safetensors"))
    Greedy.left = 1_000
    assert start(cache, tmp_path / "run", [arm], **options)["status"].item() == "trained"
    assert 1_000 - Greedy.left < 20  # it went on from a checkpoint
    assert not (tmp_path / "run" / "checkpoints").exists()
