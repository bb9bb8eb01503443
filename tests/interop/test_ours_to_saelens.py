"""SAEs of every architecture of ours, read by SAELens."""

from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from sae_bench.loading import load_sae, save_sae
from sae_bench.sae import SparseAutoencoder
from tests.foreign import SAES, assert_same_codes, placed, raw_inputs, same_sae

PLACE = {
    "model": "org/model",
    "site": "layers.3.resid_post",
    "context": {"class": "Packed", "length": 128},
}
each = pytest.mark.parametrize("sae", SAES.values(), ids=SAES)


@each
@torch.no_grad()
def test_codes_and_reconstructions_are_equal(sae: SparseAutoencoder, tmp_path: Path) -> None:
    sae = placed(sae, **PLACE)
    save_sae(sae, tmp_path, "saelens")
    theirs = SAE.load_from_disk(tmp_path)
    f = theirs.encode(raw_inputs())
    assert_same_codes(sae, f, theirs.decode(f))
    metadata = theirs.cfg.metadata
    assert metadata.model_name == "org/model"
    assert metadata.hook_name == "blocks.3.hook_resid_post"
    assert metadata.context_size == 128


@each
@torch.no_grad()
def test_heads_are_joined(sae: SparseAutoencoder, tmp_path: Path) -> None:
    """SAELens gives (batch, head, d_head) to an SAE of hook_z, and wants the same back."""
    sae = placed(sae, **{**PLACE, "site": "layers.3.attn_z"})
    save_sae(sae, tmp_path, "saelens")
    theirs = SAE.load_from_disk(tmp_path)
    x = raw_inputs().reshape(-1, 2, 8)
    assert theirs.cfg.metadata.hook_name == "blocks.3.attn.hook_z"
    f = theirs.encode(x)
    x_hat = theirs.decode(f)
    assert x_hat.shape == x.shape
    assert_same_codes(sae, f, x_hat)


@each
def test_what_saelens_saves_again_is_the_same(sae: SparseAutoencoder, tmp_path: Path) -> None:
    save_sae(sae, tmp_path / "ours", "saelens")
    SAE.load_from_disk(tmp_path / "ours").save_model(tmp_path / "theirs")
    same_sae(load_sae(tmp_path / "theirs"), sae)
