"""All architectures against each other: matched L0, equal compute, latents that match."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablations import _comparison, _matching, architectures
from sae_bench.ablation import Finished
from sae_bench.results import Results
from sae_bench.run import run
from tests.grids import tensor_cache

STUDY = architectures.PRESETS["study"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two seeds and two budgets, a few steps long."""
    recipe = STUDY.recipe.replace(
        tokens=256, batch_size=64, lr_warmup=1, lr_decay=1, penalty_warmup=1
    )
    small = STUDY.replace(
        d_sae=130, recipe=recipe, seeds=(0, 1), budgets=(0.5, 1.0), topk=(60, 20, 5)
    )
    small = small.replace(batchtopk=(60, 20, 5))
    out, cache = tmp_path_factory.mktemp("run"), tensor_cache(d_in=16)
    table = run(architectures.arms(small), cache, out=out, device="cpu")
    return Finished(small, table, out, cache)


def test_seven_architectures_with_equal_settings() -> None:
    arms = architectures.arms(STUDY)
    assert set(Counter(arm.name for arm in arms).values()) == {30}
    assert len({arm.key for arm in arms}) == len(arms) == 210
    assert not any(arm.objection for arm in arms)
    assert all(arm.ends_warm for arm in arms)


def test_from_end_to_end(finished: Finished) -> None:
    assert set(finished.table["status"]) == {"trained"}
    found = _matching.matches(finished)
    frequencies = Results.read(finished.folder).frequencies
    results = Results(finished.table, frequencies, {"matches": found})
    drawn = architectures.figures(results)
    assert {"fvu_vs_l0", "matches"} <= set(drawn)
    assert "Architectures against ReLU + L1" in architectures.answer(results)


def test_matches_are_pairs_of_other_arms(finished: Finished) -> None:
    found = _matching.matches(finished)
    assert (found["arm"] != found["to_arm"]).all()
    arms = found["arm"].nunique()
    assert found.groupby("arm").size().eq(arms).all()  # the others, and random directions
    assert (found["above_0.7"] >= found["above_0.9"]).all()
    names = finished.table["architecture"].unique()
    assert set(_matching.shares(found).columns) == {*names, "random"}


def test_cosines() -> None:
    a = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[0.0, 3.0], [5.0, 0.0]])
    assert _matching.best_cosines(a, b).tolist() == pytest.approx([1.0, 2**-0.5])
    assert _matching.best_cosines(a, -a).tolist() == pytest.approx([-(2**-0.5)] * 2)


def test_equal_compute_is_where_all_have_been() -> None:
    """FVU falls as seconds^-0.5; B spends twice the seconds for the same FVU."""
    rows = [
        {"architecture": name, "seed": seed, "eval_set": "held-out", "train_tokens": tokens}
        | {"seconds": cost * tokens, "l0": l0, "log_l0": np.log(l0)}
        | {"log_fvu": -0.5 * np.log(tokens) - 0.3 * np.log(l0) + 0.001 * seed}
        for name, cost in (("ReLU", 1.0), ("B", 2.0))
        for seed in (0, 1)
        for tokens in (100, 200, 400, 800)
        for l0 in (10, 100)
    ]
    spent = _comparison.at_compute(pd.DataFrame(rows))
    values, seconds = _comparison._at_equal_seconds(spent)
    assert seconds == pytest.approx(800)
    apart = (values["B"] - values["ReLU"]).to_numpy()
    assert apart == pytest.approx(0.5 * np.log(2))
    (axes,) = _comparison.against_compute(spent).axes
    assert [line.get_label() for line in axes.lines] == ["B", "ReLU"]


def test_one_seed_has_no_verdict(finished: Finished, tmp_path: Path) -> None:
    table = finished.table[finished.table["seed"] == 0]
    said = architectures.answer(Results(table, pd.DataFrame()))
    assert "no verdict" in said
    assert "[" not in said  # intervals
