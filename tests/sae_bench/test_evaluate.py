"""Rows of `evaluate`: which, in which order, from which model."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sae_bench import evaluate as public_evaluate
from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError
from sae_bench.evaluate import evaluate
from sae_bench.loading import load_sae
from sae_bench.models import LanguageModel
from tests.grids import SITE, lm_cache, random_saes, state_of, tensor_cache
from tests.tiny import tiny_model

LLAMA = tiny_model("llama")
LM_COLUMNS = {
    "lm_tokens",
    "lm_loss",
    "delta_lm_loss",
    "delta_lm_loss_low",
    "delta_lm_loss_high",
    "loss_recovered",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    cache = lm_cache(LLAMA, tmp_path_factory.mktemp("cache"))
    assert cache.held_out is not None
    return cache


def held_out(cache: ActivationCache) -> ActivationCache:
    assert cache.held_out is not None
    return cache.held_out


def test_the_function_is_what_the_package_exports() -> None:
    assert public_evaluate is evaluate


def test_one_sae_or_many(cache: ActivationCache) -> None:
    saes = random_saes(cache.d_in)
    many = evaluate(saes, held_out(cache), lm_tokens=100)
    assert list(many["sae"]) == [0, 1, 2, 3]
    assert set(many["eval_set"]) == {"held-out"}
    for index, sae in enumerate(saes):
        one = evaluate(sae, held_out(cache), lm_tokens=100).drop(columns="sae")
        same = many[many["sae"] == index].drop(columns="sae").reset_index(drop=True)
        pd.testing.assert_frame_equal(one, same, check_exact=True)


def test_rows_follow_the_order_given(cache: ActivationCache) -> None:
    sets = {"zulu": held_out(cache), "alpha": cache}
    rows = evaluate(random_saes(cache.d_in)[:2], sets, lm_tokens=0)
    assert list(zip(rows["sae"], rows["eval_set"], strict=True)) == [
        (0, "zulu"),
        (0, "alpha"),
        (1, "zulu"),
        (1, "alpha"),
    ]
    assert list(rows["tokens"]) == [held_out(cache).rows, cache.rows] * 2


def test_frequencies_are_one_array_a_row(cache: ActivationCache) -> None:
    rows = evaluate(random_saes(cache.d_in), held_out(cache), lm_tokens=0)
    for _, row in rows.iterrows():
        assert row["frequency"].shape == (12,)
        assert row["frequency"].sum() == pytest.approx(row["l0"], rel=1e-5)


def test_without_a_language_model(cache: ActivationCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActivationCache, "language_model", lambda self: pytest.fail("was loaded"))
    rows = evaluate(random_saes(cache.d_in), held_out(cache), lm_tokens=0)
    assert not LM_COLUMNS & set(rows)
    rows = evaluate(random_saes(8), tensor_cache())
    assert not LM_COLUMNS & set(rows)


def test_a_tensor_beside_a_language_model_s_cache(cache: ActivationCache) -> None:
    sets = {"text": held_out(cache), "tensor": tensor_cache(d_in=cache.d_in)}
    rows = evaluate(random_saes(cache.d_in)[:1], sets, lm_tokens=100).set_index("eval_set")
    assert np.isfinite(rows.loc["text", "delta_lm_loss"])
    assert np.isnan(rows.loc["tensor", "delta_lm_loss"])


def test_the_model_at_hand_is_used(cache: ActivationCache, tmp_path: Path) -> None:
    """Activations of a module object, opened from disk, cannot load their model again."""
    assert cache.folder is not None
    opened = held_out(ActivationCache.open(cache.folder, device="cpu"))
    saes = random_saes(cache.d_in)
    with pytest.raises(InputError, match="given as an object"):
        evaluate(saes, opened, lm_tokens=100)
    with_model = evaluate(saes, opened, lm_tokens=100, language_model=LLAMA)
    wanted = evaluate(saes, held_out(cache), lm_tokens=100)
    pd.testing.assert_frame_equal(with_model, wanted, check_exact=True)


def test_models_are_sought_before_anything_is_measured(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.folder is not None
    opened = held_out(ActivationCache.open(cache.folder, device="cpu"))
    module = import_module("sae_bench.evaluate")  # the package has a function of this name
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("was measured"))
    with pytest.raises(InputError, match="given as an object"):
        evaluate(random_saes(cache.d_in), opened, lm_tokens=100)


def test_a_model_saved_to_a_folder_is_loaded_again(tmp_path: Path) -> None:
    LLAMA.model.save_pretrained(tmp_path / "model")
    LLAMA.tokenizer.save_pretrained(tmp_path / "model")
    lm = LanguageModel.load(tmp_path / "model", device="cpu")
    built = lm_cache(lm, tmp_path / "caches")
    assert built.folder is not None
    opened = ActivationCache.open(built.folder, device="cpu")
    saes = random_saes(built.d_in)[:1]
    rows = [evaluate(saes, held_out(c), lm_tokens=100) for c in (built, opened)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)


def test_a_loaded_sae_evaluates_like_the_one_in_memory(
    cache: ActivationCache, tmp_path: Path
) -> None:
    saes = [sae.fold_(3.0) for sae in random_saes(cache.d_in)]
    for index, sae in enumerate(saes):
        sae.save(tmp_path / str(index))
    loaded = [load_sae(tmp_path / str(index)) for index in range(len(saes))]
    one, other = (evaluate(both, held_out(cache), lm_tokens=100) for both in (saes, loaded))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_changes_nothing(cache: ActivationCache, training: bool) -> None:
    saes = [sae.train(training) for sae in random_saes(cache.d_in)]
    before = [state_of(sae) for sae in saes]
    modes = []
    hooks = [
        sae.register_forward_pre_hook(lambda module, _: modes.append(module.training))
        for sae in saes
    ]
    evaluate(saes, held_out(cache), lm_tokens=100)
    for hook in hooks:
        hook.remove()
    assert modes
    assert not any(modes)  # measured in evaluation mode ...
    assert all(sae.training == training for sae in saes)  # ... and given back as they were
    assert [state_of(sae) for sae in saes] == before
    assert all(parameter.grad is None for sae in saes for parameter in sae.parameters())


def test_the_mode_is_restored_after_an_error(cache: ActivationCache) -> None:
    sae = random_saes(cache.d_in)[0].train()
    sae.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(sae, held_out(cache), lm_tokens=100)
    assert sae.training


def test_wrong_input(cache: ActivationCache) -> None:
    with pytest.raises(InputError, match=r"width 8, evaluation set 'held-out' holds width 32"):
        evaluate(random_saes(8), held_out(cache))
    with pytest.raises(InputError, match="no SAEs were given"):
        evaluate([], held_out(cache))
    with pytest.raises(InputError, match="no evaluation set is named"):
        evaluate(random_saes(32), {})
    with pytest.raises(InputError, match="lm_tokens"):
        evaluate(random_saes(32), held_out(cache), lm_tokens=-1)


def test_other_sites_have_other_widths(tmp_path: Path) -> None:
    """The width is the site's, not the model's."""
    lm = tiny_model("gemma2")
    heads = lm_cache(lm, tmp_path, site="layers.1.attn_z")
    assert heads.d_in == 48 != lm_cache(lm, tmp_path, site=SITE).d_in
    rows = evaluate(random_saes(48)[:1], held_out(heads), lm_tokens=100)
    assert torch.isfinite(torch.tensor(rows["delta_lm_loss"].item()))
