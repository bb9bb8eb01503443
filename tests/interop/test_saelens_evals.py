"""SAELens' own evaluation of SAEs that we wrote, and ours of the same activations."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_bench.cache import ActivationCache
from sae_bench.evaluate import evaluate
from sae_bench.loading import save_sae
from sae_bench.sae import SparseAutoencoder
from tests.foreign import D_IN, SAES, placed

PROMPTS, CONTEXT, VOCABULARY = 24, 16, 50
HOOKS = {
    "layers.0.resid_post": "blocks.0.hook_resid_post",
    "layers.1.resid_pre": "blocks.1.hook_resid_pre",
    "layers.1.mlp_out": "blocks.1.hook_mlp_out",
    "layers.1.attn_z": "blocks.1.attn.hook_z",
}


@cache
def language_model() -> HookedTransformer:
    """Two layers, random weights."""
    config = HookedTransformerConfig(
        **{"n_layers": 2, "d_model": D_IN, "n_ctx": CONTEXT, "d_head": 8, "n_heads": 2},
        **{"d_mlp": 32, "d_vocab": VOCABULARY, "act_fn": "gelu", "seed": 0, "device": "cpu"},
        **{"init_weights": True, "initializer_range": 0.5},
    )
    return HookedTransformer(config)


@cache
def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, VOCABULARY, (PROMPTS, CONTEXT), generator=generator)


def theirs(path: Path, batches: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their metrics of what lies at `path`, on all prompts in so many batches."""
    sae, model = SAE.load_from_disk(path), language_model()
    prompts = PROMPTS // batches
    store = ActivationsStore.from_sae(
        model,
        sae,
        Dataset.from_dict({"tokens": tokens().tolist()}),
        context_size=CONTEXT,
        streaming=False,
        store_batch_size_prompts=prompts,
        n_batches_in_buffer=2,
        train_batch_size_tokens=16,
        total_tokens=PROMPTS,
    )
    config = EvalConfig(
        batch_size_prompts=prompts,
        n_eval_sparsity_variance_batches=batches,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    metrics, features = run_evals(sae, store, model, ActivationScaler(), config)
    return {key: value for group in metrics.values() for key, value in group.items()}, features


def ours(sae: SparseAutoencoder, hook: str) -> Any:
    """Our row of the same activations."""
    _, found = language_model().run_with_cache(tokens(), names_filter=hook, prepend_bos=False)
    x = found[hook].reshape(-1, D_IN)
    return evaluate(sae, ActivationCache.from_tensor(x, held_out=0)).iloc[0]


@pytest.mark.parametrize("sae", SAES.values(), ids=SAES)
@pytest.mark.parametrize("site", HOOKS)
@torch.no_grad()
def test_both_measure_the_same(sae: SparseAutoencoder, site: str, tmp_path: Path) -> None:
    """L0, explained variance = 1 - FVU (pooled over batches), firing rates; gamma, which they
    average over batches, in one batch."""
    sae = placed(sae, site=site, model="tiny", context={"length": CONTEXT})
    save_sae(sae, tmp_path, "saelens")
    row = ours(sae, HOOKS[site])
    assert 2 < row["l0"] < sae.d_sae - 2
    for batches in (1, 3):
        metrics, features = theirs(tmp_path, batches)
        assert metrics["total_tokens_eval_sparsity_variance"] == row["tokens"] == PROMPTS * CONTEXT
        assert metrics["l0"] == pytest.approx(row["l0"], rel=1e-4)
        assert metrics["explained_variance"] == pytest.approx(1 - row["fvu"], rel=1e-4)
        assert 1 - metrics["explained_variance"] == pytest.approx(row["fvu"], rel=1e-4)
        assert features["feature_density"] == pytest.approx(row["frequency"].tolist(), abs=1e-6)
        if batches == 1:
            gamma = metrics["relative_reconstruction_bias"]
            assert gamma == pytest.approx(row["gamma"], rel=1e-3)
