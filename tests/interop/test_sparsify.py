"""sparsify's SparseCoder, read by us, and ours read by it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from sae_bench.loading import load_sae, save_sae
from sae_bench.sae import SparseAutoencoder
from tests.foreign import D_IN, D_SAE, SAES, K, assert_same_codes, placed, raw_inputs, weights
from tests.interop.modules import filled

TOPK = {name: sae for name, sae in SAES.items() if name == "TopKSAE"}


def coder(dtype: torch.dtype = torch.float32, **options: Any) -> SparseCoder:
    W = weights()
    config = SparseCoderConfig(**{"num_latents": D_SAE, "k": K, **options})
    return filled(
        SparseCoder(D_IN, config, dtype=dtype),
        encoder__weight=W["W_enc"].T,
        encoder__bias=W["b_enc"],
        W_dec=W["W_dec"],
        b_dec=W["b_dec"],
    )


def outputs(sae: SparseCoder) -> tuple[Tensor, Tensor]:
    """Dense codes, and the reconstruction."""
    values, index, _ = sae.encode(raw_inputs())
    codes = torch.zeros(len(values), D_SAE).scatter(-1, index, values)
    return codes, sae.decode(values, index)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_decoder": False},
        {"num_latents": 0, "expansion_factor": D_SAE // D_IN},
        {"multi_topk": True},
        {"k": 24},
        {"k": D_SAE // 2},
    ],
    ids=str,
)
@torch.no_grad()
def test_theirs_read_by_us(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = coder(**options)
    path = tmp_path / "layers.3.mlp"
    theirs.save_to_disk(path)
    ours = load_sae(path)
    assert type(ours).__name__ == "TopKSAE"
    assert_same_codes(ours, *outputs(SparseCoder.load_from_disk(path)))
    assert_same_codes(ours, *outputs(theirs))
    assert ours.provenance["site"] == "layers.3.mlp_out"


@torch.no_grad()
def test_bfloat16_weights_are_read_as_they_are(tmp_path: Path) -> None:
    coder(torch.bfloat16).save_to_disk(tmp_path)
    theirs = SparseCoder.load_from_disk(tmp_path).float()
    assert_same_codes(load_sae(tmp_path), *outputs(theirs))


@pytest.mark.parametrize("sae", TOPK.values(), ids=TOPK)
@torch.no_grad()
def test_ours_read_by_the_library(sae: SparseAutoencoder, tmp_path: Path) -> None:
    save_sae(placed(sae, model="org/model", site="layers.3.attn_z"), tmp_path, "sparsify")
    theirs = SparseCoder.load_from_disk(tmp_path)
    assert_same_codes(sae, *outputs(theirs))
    x = raw_inputs()
    torch.testing.assert_close(theirs(x).sae_out, sae(x), rtol=0, atol=1e-4)
