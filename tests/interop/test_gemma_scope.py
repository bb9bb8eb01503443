"""Gemma Scope's params.npz in the hub's folders, read by SAELens' loader and by us."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders

from sae_bench.errors import InputError
from sae_bench.loading import load_sae, save_sae
from sae_bench.sae import SparseAutoencoder
from tests.foreign import D_IN, D_SAE, SAES, assert_same_codes, placed, raw_inputs, some

SITES = {
    "google/gemma-scope-2b-pt-res": ("layers.12.resid_post", "google/gemma-2-2b"),
    "google/gemma-scope-9b-pt-mlp": ("layers.12.mlp_out", "google/gemma-2-9b"),
    "google/gemma-scope-2b-pt-att": ("layers.12.attn_z", "google/gemma-2-2b"),
    "google/gemma-scope-9b-it-res": ("layers.12.resid_post", "google/gemma-2-9b-it"),
}
FOLDER = "layer_12/width_16k/average_l0_82"


def read_by_saelens(root: Path, repo: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """SAELens' own Gemma Scope loader, the hub being a folder."""

    def download(repo_id: str, filename: str, subfolder: str, **_: Any) -> str:
        return str(root / repo_id / subfolder / filename)

    def converter(path: Path, device: str, cfg_overrides: Any) -> tuple[Any, Any]:
        sizes = {"d_in": D_IN, "d_sae": D_SAE}
        found = loaders.gemma_2_sae_huggingface_loader(repo, FOLDER, device, False, sizes)
        return found[:2]

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    return SAE.load_from_disk(root, converter=converter)


def outputs(theirs: Any, repo: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention SAEs take heads apart there."""
    x = raw_inputs()
    f = theirs.encode(x.reshape(-1, 2, 8) if repo.endswith("att") else x)
    return f, theirs.decode(f)


@pytest.mark.parametrize("repo", SITES)
@pytest.mark.parametrize("lower", [False, True])
@torch.no_grad()
def test_theirs_read_by_us(
    repo: str, lower: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {name: tensor.numpy() for name, tensor in some("b_enc", "threshold").items()}
    arrays["threshold"][1::6] = -0.2
    if lower:
        arrays = {name.replace("W_", "w_"): array for name, array in arrays.items()}
        arrays["scaling_factor"] = np.ones(D_SAE, np.float32)
    folder = tmp_path / repo / FOLDER
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **arrays)
    theirs = read_by_saelens(tmp_path, repo, monkeypatch)
    for path in (folder, folder / "params.npz"):
        ours = load_sae(path)
        assert_same_codes(ours, *outputs(theirs, repo))
        assert (ours.provenance["site"], ours.provenance["model"]) == SITES[repo]
        assert ours.provenance["context"] == {"length": 1024}


@pytest.mark.parametrize("sae", SAES.values(), ids=SAES)
@torch.no_grad()
def test_ours_read_by_saelens(
    sae: SparseAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but TopK, which no thresholds can express."""
    repo = next(iter(SITES))
    if type(sae).__name__ == "TopKSAE":
        with pytest.raises(InputError, match="a TopK SAE has no equal JumpReLU SAE"):
            save_sae(sae, tmp_path, "gemma-scope")
        return
    # The remark on the site stands where the loader does not look.
    sae = placed(sae, model="org/model", site="layers.3.attn_z", context={"length": 16})
    save_sae(sae, tmp_path / repo / FOLDER, "gemma-scope")
    assert_same_codes(sae, *outputs(read_by_saelens(tmp_path, repo, monkeypatch), repo))
