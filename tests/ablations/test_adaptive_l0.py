"""Fixed against adaptive L0: deciles of difficulty, differences at matched L0, from end to end."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablations import adaptive_l0
from sae_bench import ablation
from sae_bench.ablation import Data
from sae_bench.contexts import Packed
from sae_bench.results import Results
from sae_bench.study import study
from tests.desk import furnish

STUDY = adaptive_l0.PRESETS["study"]
LETTERS = Data(
    model="model",
    site="layers.1.resid_post",
    text="text.jsonl",
    tokens=1000,
    held_out_tokens=200,
    context=Packed(24),
    lm_tokens=200,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = furnish(tmp_path_factory.mktemp("desk"))
    recipe = STUDY.recipe.replace(
        tokens=512, batch_size=64, lr_warmup=1, lr_decay=1, penalty_warmup=2
    )
    small = STUDY.replace(data=LETTERS, d_sae=32, recipe=recipe, seeds=(0, 1), k=(2, 4, 6, 8))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("SAE_BENCH_CACHE", str(folder / "cache"))
        return study(ablation.load("adaptive_l0"), {"": small}, folder / "run", device="cpu")


def test_the_grid() -> None:
    arms = adaptive_l0.arms(STUDY)
    assert len({arm.key for arm in arms}) == len(arms) == 36
    assert not any(arm.objection for arm in arms)
    assert len({(arm.recipe.lr, arm.recipe.data_seed, arm.recipe.steps) for arm in arms}) == 1


def test_deciles_are_means_over_equally_many_tokens() -> None:
    hard = np.array([3.0, 1.0, 2.0, 0.0] * 10)
    (means,) = adaptive_l0.by_decile(hard, hard)
    assert means.tolist() == np.repeat([0, 1, 2, 3], 10).reshape(10, 4).mean(1).tolist()
    assert (np.diff(means) >= 0).all()


def test_from_end_to_end(results: Results) -> None:
    deciles = results.further["difficulty"]
    assert set(deciles["arm"]) == set(results.table["arm"])
    assert deciles.groupby("arm").size().eq(10).all()
    topk = results.table[results.table["architecture"] == "TopK"]
    loss = deciles.groupby("arm")["delta_lm_loss"].mean()
    known = results.table.set_index("arm")["delta_lm_loss"]
    assert loss[known.index].to_numpy() == pytest.approx(known.to_numpy(), abs=0.05)
    assert (np.diff(deciles["loss"].to_numpy().reshape(-1, 10)) >= 0).all()
    assert set(topk["series"])
    assert {"frontiers", "difficulty"} == set(adaptive_l0.figures(results))
    assert "hardest tenth" in adaptive_l0.answer(results)


def test_differences_are_found_where_they_are() -> None:
    rows = [
        {"line": line, "seed": seed, "eval_set": "held-out", "log_l0": np.log(l0)}
        | {"log_fvu": -0.5 * np.log(l0) + shift + 0.001 * seed * (line == "JumpReLU")}
        for line, shift in (("TopK", 0.0), ("BatchTopK", -0.1), ("JumpReLU", 0.2))
        for seed in range(3)
        for l0 in (15, 40, 100)
    ]
    found = adaptive_l0.differences(pd.DataFrame(rows), "log_fvu")
    assert list(found["BatchTopK"]) == ["mean", "16", "32", "64"]
    assert all(each.mean == pytest.approx(-0.1) for each in found["BatchTopK"].values())
    assert found["JumpReLU"]["mean"].mean == pytest.approx(0.201)
    assert found["JumpReLU"]["mean"].low > 0
    assert adaptive_l0.differences(pd.DataFrame(rows), "log_fvu", at=(8,)) == {}


def test_easiest_and_hardest_tokens_have_rows_of_their_own() -> None:
    """Planted: BatchTopK gains 0.1 on all tokens, 0.3 on the easiest, nothing on the hardest."""
    gains = {0: 0.3, 5: 0.1, 9: 0.0}
    known, deciles = [], []
    for line in ("TopK", "BatchTopK", "JumpReLU"):
        for seed in range(2):
            for l0 in (12.0, 40.0, 140.0):
                arm = f"{line}-{seed}-{l0}"
                of_all = {"arm": arm, "architecture": line, "seed": seed, "l0": l0}
                of_all |= {"penalty": "", "kernel": None, "eval_set": "held-out"}
                fvu = {d: np.exp(-gain * (line == "BatchTopK")) / l0 for d, gain in gains.items()}
                known.append(of_all | {"fvu": fvu[5], "delta_lm_loss": 1 / l0})
                deciles += [
                    {"arm": arm, "decile": d, "l0": l0, "fvu": each, "delta_lm_loss": 1 / l0}
                    for d, each in fvu.items()
                ]
    further = {"difficulty": pd.DataFrame(deciles)}
    found = adaptive_l0.contrasts(Results(pd.DataFrame(known), pd.DataFrame(), further))
    found = found[(found["outcome"] == "log_fvu") & (found["contrast"] == "BatchTopK")]
    means = found[found["l0"].isna()].set_index("decile")["mean"]
    assert means.index.tolist() == pytest.approx([np.nan, 0, 9], nan_ok=True)
    assert means.tolist() == pytest.approx([-0.1, -0.3, 0.0])


def test_without_a_language_model_there_are_no_deciles(results: Results, tmp_path: Path) -> None:
    bare = Results(results.table, results.frequencies)
    assert "difficulty" not in adaptive_l0.figures(bare)
    assert "hardest" not in adaptive_l0.answer(bare)
