"""Tokens of huge norm are found, and said in one line."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_bench import norms
from sae_bench.cache import ActivationCache
from sae_bench.contexts import PerDocument
from sae_bench.norms import Huge
from sae_bench.shards import Columns
from tests.corpus import Letters
from tests.tiny import tiny_model


def planted(tokens: int = 100, size: float = 50.0) -> torch.Tensor:
    """Norms of 2, and `size` at rows 7 and 9."""
    x = torch.zeros(tokens, 3)
    x[:, 0] = 2.0
    x[[7, 9]] = torch.tensor([0.0, -size, 0.0])
    return x


def at(positions: np.ndarray) -> Callable[[], Columns]:
    one = np.zeros(len(positions), np.int64)
    return lambda: Columns(one.astype(np.int32), positions.astype(np.int32), one, one)


def nowhere() -> Columns:
    raise AssertionError("nothing is said, and so nothing is to be read")


def test_planted_tokens_are_found() -> None:
    huge = Huge.among(planted().split(8))
    assert (len(huge.norms), huge.median) == (100, 2.0)
    assert huge.norms[huge.found].tolist() == [50.0, 50.0]
    assert huge.share == pytest.approx(5000 / (5000 + 98 * 4))
    said = huge.warning("layers.1.resid_post", at(np.arange(100) % 6))
    assert said is not None
    assert said.startswith(
        "2 of 100 tokens of layers.1.resid_post, at positions 1 to 3 of their contexts, have norms "
        "of 50 to 50 (median 2) and hold 93% of the squared norm"
    )
    assert "\n" not in said


@pytest.mark.parametrize("size", [2.0, 19.9])
def test_ten_times_the_median_is_not_yet_huge(size: float) -> None:
    huge = Huge.among([planted(size=size)])
    assert not huge.found.any()
    assert (huge.share, huge.warning("x", nowhere)) == (0.0, None)


def test_a_few_of_little_weight_are_not_worth_a_word() -> None:
    huge = Huge.among([planted(tokens=10_000, size=21.0)])
    assert huge.found.sum() == 2
    assert 0 < huge.share < norms.MUCH
    assert huge.warning("x", nowhere) is None


def test_only_the_first_tokens_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "SAMPLE", 9)
    huge = Huge.among(planted().split(4))
    assert len(huge.norms) == 9
    assert "positions 7 to 7" in str(huge.warning("x", at(np.arange(100))))


def test_activations_that_are_no_numbers_are_no_matter_here() -> None:
    x = planted()
    x[3] = float("nan")
    assert Huge.among([x]).warning("x", nowhere) is None


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
