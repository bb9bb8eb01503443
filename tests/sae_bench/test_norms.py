"""Tokens of huge norm are found, and said in one line."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_bench import norms
from sae_bench.cache import ActivationCache
from sae_bench.contexts import PerDocument
from sae_bench.norms import Huge
from tests.corpus import Letters
from tests.tiny import tiny_model


def planted(tokens: int = 100, size: float = 50.0) -> torch.Tensor:
    """Norms of 2, and `size` at rows 7 and 9."""
    x = torch.zeros(tokens, 3)
    x[:, 0] = 2.0
    x[[7, 9]] = torch.tensor([0.0, -size, 0.0])
    return x


def test_planted_tokens_are_found() -> None:
    found = Huge.among(planted().split(8), np.arange(100, dtype=np.int32) % 6)
    assert (found.tokens, found.median) == (100, 2.0)
    assert found.norms.tolist() == [50.0, 50.0]
    assert found.positions.tolist() == [1, 3]
    assert found.share == pytest.approx(5000 / (5000 + 98 * 4))
    said = found.warning("layers.1.resid_post")
    assert said is not None
    assert said.startswith(
        "2 of 100 tokens of layers.1.resid_post, at positions 1 to 3 of their contexts, have norms "
        "of 50 to 50 (median 2) and hold 93% of the squared norm"
    )
    assert "\n" not in said


@pytest.mark.parametrize("size", [2.0, 19.9])
def test_ten_times_the_median_is_not_yet_huge(size: float) -> None:
    found = Huge.among([planted(size=size)], np.zeros(100, np.int32))
    assert (len(found.norms), found.share, found.warning("x")) == (0, 0.0, None)


def test_a_few_of_little_weight_are_not_worth_a_word() -> None:
    found = Huge.among([planted(tokens=10_000, size=21.0)], np.zeros(10_000, np.int32))
    assert len(found.norms) == 2
    assert 0 < found.share < norms.MUCH
    assert found.warning("x") is None


def test_only_the_first_tokens_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "SAMPLE", 9)
    found = Huge.among(planted().split(4), np.arange(100, dtype=np.int32))
    assert (found.tokens, found.positions.tolist()) == (9, [7])


def test_activations_that_are_no_numbers_are_no_matter_here() -> None:
    x = planted()
    x[3] = float("nan")
    assert Huge.among([x], np.zeros(100, np.int32)).warning("x") is None


def test_a_cache_that_is_built_warns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, site = tiny_model("llama"), "layers.1.resid_post"

    def build() -> None:
        sizes = {"tokens": 500, "shard_tokens": 400, "held_out_tokens": 0}
        context = PerDocument(32)
        ActivationCache.build(model, [site], Letters(), context=context, root=tmp_path, **sizes)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()
    monkeypatch.setattr(norms, "HUGE", 1)
    with pytest.warns(UserWarning, match=f"{site}.* of the squared norm"):
        build()
