"""Whole runs of a small grid on a tiny language model: what comes out, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sae_bench
from architectures import ReLUSAE, TopKSAE
from sae_bench.arm import Arm, grid
from sae_bench.cache import ActivationCache
from sae_bench.contexts import Packed
from sae_bench.errors import InputError
from sae_bench.evaluate import evaluate
from sae_bench.loading import load_sae
from sae_bench.results import Results
from sae_bench.run import run
from sae_bench.stream import ActivationStream
from sae_bench.train import train
from tests.corpus import Letters
from tests.desk import contents
from tests.grids import RECIPE, SITE, lm_cache, tensor_cache
from tests.runs import ARMS, LLAMA, LM_TOKENS, MODULE, forbidden, start

COLUMNS = [
    *("architecture", "activation", "penalty", "coefficient", "kernel", "d_sae", "seed"),
    *("model", "site", "train_context", "eval_set", "tokens", "l0", "fvu", "delta_lm_loss"),
    *("loss_recovered", "gamma", "dead", "above_1pct", "above_10pct", "l0_share_above_10pct"),
    *("status", "reason"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return lm_cache(LLAMA, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    start(cache, out)
    return out


# --- a complete run -----------------------------------------------------------------------------


def test_the_table(finished: Path, cache: ActivationCache) -> None:
    table = pd.read_parquet(finished / "table.parquet")
    assert set(COLUMNS) <= set(table)
    assert len(table) == len(ARMS)
    assert list(table["arm"]) == [arm.key for arm in ARMS]
    assert set(table["architecture"]) == {"ReLU", "TopK", "Gated", "JumpReLU"}
    assert set(table["status"]) == {"trained"}
    assert set(table["reason"]) == {""}
    assert set(table["model"]) == {"tiny-llama"}
    assert set(table["site"]) == {SITE}
    assert set(table["train_context"]) == {"Packed(24)"}
    assert set(table["eval_set"]) == {"held-out"}
    assert cache.held_out is not None
    assert set(table["tokens"]) == {cache.held_out.rows}
    measured = table[["l0", "fvu", "delta_lm_loss", "loss_recovered", "gamma", "dead"]]
    assert np.isfinite(measured.to_numpy()).all()
    topk = table[table["architecture"] == "TopK"]
    assert (topk["l0"] <= topk["activation"].str.extract(r"(\d+)")[0].astype(float)).all()
    jump = table[table["architecture"] == "JumpReLU"]
    assert set(jump["coefficient"]) == {1e-3, 1e-2}
    assert jump["kernel"].str.contains("Rectangle(0.05)", regex=False).all()
    assert set(table.loc[table["architecture"] == "ReLU", "kernel"]) == {""}


def test_the_csv_says_the_same(finished: Path) -> None:
    table = pd.read_parquet(finished / "table.parquet")
    csv = pd.read_csv(finished / "table.csv", keep_default_na=False)
    assert list(csv) == list(table)
    assert list(csv["arm"]) == list(table["arm"])
    np.testing.assert_allclose(csv["fvu"].astype(float), table["fvu"], rtol=1e-12)


def test_the_frequencies(finished: Path) -> None:
    results = Results.read(finished)
    assert list(results.frequencies["arm"]) == list(results.table["arm"])
    for frequency, l0 in zip(results.frequencies["frequency"], results.table["l0"], strict=True):
        assert frequency.shape == (16,)
        assert frequency.sum() == pytest.approx(l0, rel=1e-5)


def test_what_is_returned_is_what_is_on_disk(finished: Path, cache: ActivationCache) -> None:
    table = pd.read_parquet(finished / "table.parquet")
    pd.testing.assert_frame_equal(start(cache, finished), table, check_exact=True)


def test_the_table_measures_what_training_left(finished: Path, cache: ActivationCache) -> None:
    """Normalise, reconstruct with the SAE as it was trained, and scale back."""
    table = pd.read_parquet(finished / "table.parquet")
    assert cache.held_out is not None
    assert cache.scale > 2  # else normalised and raw could be taken for each other
    x = torch.cat(list(cache.held_out.chunks(100)))
    for arm, ended in zip(ARMS, train(ARMS, cache, device="cpu"), strict=True):
        with torch.no_grad():
            f = ended.sae.encode(x / cache.scale)
            x_hat = ended.sae.decode(f) * cache.scale
        row = table[table["arm"] == arm.key].iloc[0]
        fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
        assert row["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
        assert row["l0"] == pytest.approx((f > 0).sum(1).double().mean().item(), rel=1e-3)


def test_saved_saes_take_raw_activations(finished: Path, cache: ActivationCache) -> None:
    table = pd.read_parquet(finished / "table.parquet").set_index("arm")
    for key, row in table.iterrows():
        sae = load_sae(finished / "arms" / str(key) / "sae")
        measured = evaluate(sae, {"held-out": cache.held_out}, lm_tokens=LM_TOKENS)  # type: ignore[dict-item]
        for name in ("l0", "fvu", "delta_lm_loss"):
            assert measured[name].item() == row[name]


def test_the_specification_is_complete(finished: Path, cache: ActivationCache) -> None:
    found = json.loads((finished / "grid.json").read_text())
    assert found["arms"] == json.loads(json.dumps({arm.key: arm.record() for arm in ARMS}))
    assert found["inputs"]["train"] == json.loads(json.dumps(cache.record()))
    assert found["environment"]["versions"]["torch"]
    for arm in ARMS:
        history = pd.read_parquet(finished / "arms" / arm.key / "training.parquet")
        assert history["step"].iloc[-1] == arm.recipe.steps
        assert {"l0", "fvu", "lr", "reconstruction"} <= set(history)


def test_arms_in_a_run_are_as_if_alone(
    finished: Path, cache: ActivationCache, tmp_path: Path
) -> None:
    table = pd.read_parquet(finished / "table.parquet")
    for index in (0, 3, 8):
        alone = start(cache, tmp_path / str(index), [ARMS[index]])
        assert alone["fvu"].item() == table["fvu"][index]
        assert alone["delta_lm_loss"].item() == table["delta_lm_loss"][index]


def test_several_evaluation_sets(cache: ActivationCache, tmp_path: Path) -> None:
    assert cache.held_out is not None
    sets = {"second": cache.held_out, "first": cache}
    table = start(cache, tmp_path / "run", ARMS[:2], evaluate=sets, lm_tokens=0)
    assert list(table["eval_set"]) == ["second", "first"] * 2
    assert list(table["arm"]) == [ARMS[0].key] * 2 + [ARMS[1].key] * 2
    assert table["delta_lm_loss"].isna().all()


def test_a_tensor(tmp_path: Path) -> None:
    table = start(tensor_cache(), tmp_path / "run", ARMS[:3])
    assert set(COLUMNS) <= set(table)
    assert table["fvu"].notna().all()
    assert table["delta_lm_loss"].isna().all()
    assert set(table["model"]) == {"tensor"}


def test_a_stream(cache: ActivationCache, tmp_path: Path) -> None:
    stream = ActivationStream(
        LLAMA, SITE, Letters(), context=Packed(24), tokens_in_buffer=256, held_out=cache.held_out
    )
    table = run(ARMS[:2], stream, out=tmp_path / "run", device="cpu", lm_tokens=0)
    assert set(table["status"]) == {"trained"}
    assert set(table["train_context"]) == {"Packed(24)"}
    assert (table["activation_scale"] == stream.scale).all()


# --- what is refused ----------------------------------------------------------------------------


def refusal(cache: Any, out: Path, arms: list[Arm] = ARMS, **options: Any) -> str:
    """The one line; nothing was trained, measured or changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "train_arms", forbidden)
        patch.setattr(MODULE, "evaluate", forbidden)
        with pytest.raises(InputError) as caught:
            start(cache, out, arms, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_arguments(cache: ActivationCache, tmp_path: Path) -> None:
    out = tmp_path / "run"
    big = grid(ReLUSAE, d_sae=16, recipe=RECIPE.replace(batch_size=1280, tokens=1280))
    alone = tensor_cache(held_out=0.0)
    assert "no arms" in refusal(cache, out, [])
    assert "given twice" in refusal(cache, out, [ARMS[0], ARMS[1], ARMS[0]])
    assert "fewer tokens than one batch of 1280" in refusal(cache, out, big)
    assert "no held-out split" in refusal(alone, out)
    assert "no evaluation set is named" in refusal(cache, out, evaluate={})
    assert "width 8" in refusal(cache, out, evaluate={"other": tensor_cache()})
    assert "'nonsense'" in refusal(cache, out, device="nonsense")
    assert "lm_tokens" in refusal(cache, out, lm_tokens=-5)
    assert "must not be negative" in refusal(cache, out, checkpoint_every=-1.0)
    assert not out.exists()


def test_a_batch_as_large_as_the_cache_but_not_its_whole_blocks(
    cache: ActivationCache, tmp_path: Path
) -> None:
    assert cache.rows % 32
    recipe = RECIPE.replace(batch_size=cache.rows, tokens=cache.rows)
    assert "fewer tokens than one batch" in refusal(
        cache, tmp_path / "run", grid(ReLUSAE, d_sae=16, recipe=recipe)
    )
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_found_again(cache: ActivationCache, tmp_path: Path) -> None:
    assert cache.folder is not None
    opened = ActivationCache.open(cache.folder, device="cpu")
    assert "given as an object" in refusal(opened, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    table = start(opened, tmp_path / "run", ARMS[:1], language_model=LLAMA)
    assert table["delta_lm_loss"].notna().all()


def test_other_grids(finished: Path, cache: ActivationCache, tmp_path: Path) -> None:
    before = contents(finished)
    other = tensor_cache(d_in=32)
    assert "another grid ('train' differs: train.context is " in refusal(other, finished)
    assert cache.held_out is not None
    sets = {"other name": cache.held_out}
    assert "another grid ('evaluate' differs: evaluate.held-out is " in refusal(
        cache, finished, evaluate=sets
    )
    assert "another grid ('lm_tokens' differs: lm_tokens is 150 there and 10 here)" in refusal(
        cache, finished, lm_tokens=10
    )
    assert contents(finished) == before


def test_places_that_are_no_run_folder(cache: ActivationCache, tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").write_text("precious")
    file.write_text("precious")
    foreign, broken = tmp_path / "foreign", tmp_path / "broken"
    for folder, text in ((foreign, "[1, 2]"), (broken, "{")):
        folder.mkdir()
        (folder / "grid.json").write_text(text)
    before = contents(tmp_path)
    assert "is not a run folder" in refusal(cache, full)
    assert "is not a run folder" in refusal(cache, file)
    assert "cannot be written" in refusal(cache, file / "below")
    for folder in (foreign, broken):
        assert "damaged (not as it was written), or not a run's" in refusal(cache, folder)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_taken(cache: ActivationCache, tmp_path: Path) -> None:
    assert len(start(cache, tmp_path, ARMS[:1], lm_tokens=0)) == 1


# --- what is no list of arms, no evaluation set ------------------------------------------------


MISTAKES = """
import torch
from architectures import ReLUSAE
from sae_bench import ActivationCache, InputError, Recipe, evaluate, grid, run

x = torch.ones(64, 4)
cache, arms = ActivationCache.from_tensor(x), grid(ReLUSAE, d_sae=8, recipe=Recipe(32, 32))
for mistake in (
    lambda: run(arms[0], cache, out="run"),
    lambda: run([arms], cache, out="run"),
    lambda: run(3, cache, out="run"),
    lambda: run(arms, cache, x, out="run"),
    lambda: run(arms, cache, {"name": x}, out="run"),
    lambda: evaluate(ReLUSAE(4, 8), x),
    lambda: evaluate(["folder"], cache),
):
    try:
        mistake()
    except InputError as error:
        print(error)
"""
REFUSALS = (
    "put the one arm into [ ]",
    "got a list; join grids with [*grid(...), *grid(...)]",
    "must be a list of arms, got an int",
    "or caches by name, got a Tensor",
    "set 'name' must be an ActivationCache, got a Tensor",
    "or caches by name, got a Tensor",
    "takes SAEs, got a str",
)


def test_arms_and_sets_of_other_types(tmp_path: Path) -> None:
    """As users see it: in a process where no run-time type checker comes first."""
    path = os.pathsep.join([str(Path(sae_bench.__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", MISTAKES]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(REFUSALS), done.stderr
    for line, words in zip(lines, REFUSALS, strict=True):
        assert words in line
    assert not list(tmp_path.iterdir())


def test_the_training_data_is_called_so(tmp_path: Path) -> None:
    cache = tensor_cache()
    arms = grid(ReLUSAE, d_sae=16, recipe=RECIPE)
    with pytest.warns(UserWarning, match="evaluation set 'training' is the training data"):
        table = run(arms, cache, cache, out=tmp_path / "run", device="cpu")
    assert list(table["eval_set"]) == ["training"]


def test_failed_arms_are_reported(tmp_path: Path) -> None:
    arms = [
        *grid(ReLUSAE, d_sae=16, recipe=RECIPE),
        *grid(ReLUSAE, d_sae=16, recipe=RECIPE.replace(lr=1e30)),
    ]
    with pytest.warns(UserWarning, match=f"^1 arm of 2 failed: {arms[1].key}: diverged"):
        run(arms, tensor_cache(), out=tmp_path / "run", device="cpu")


def test_the_warm_up_of_no_penalty_does_not_matter() -> None:
    slow = RECIPE.replace(penalty_warmup=1000)
    top_k, relu = grid(TopKSAE, d_sae=64, recipe=slow), grid(ReLUSAE, d_sae=64, recipe=slow)
    assert [arm.ends_warm for arm in (*top_k, *relu)] == [True, False]
    (late,) = grid(TopKSAE, d_sae=64, recipe=RECIPE.replace(lr_warmup=1000))
    assert not late.ends_warm
