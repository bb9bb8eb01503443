"""sparsify's folders, without the library: conventions, and files that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_bench.loading import load_sae
from tests.foreign import D_IN, D_SAE, K, assert_same_codes, raw_inputs, weights
from tests.refusals import refused
from tests.sae_bench.formats.files import Edit, edit_json, edit_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
W = weights()


def write(folder: Path) -> Path:
    """A folder as the library writes it."""
    folder.mkdir(exist_ok=True)
    config = {"activation": "topk", "num_latents": D_SAE, "k": K, "d_in": D_IN, "transcode": False}
    (folder / CONFIG).write_text(json.dumps(config))
    tensors = {"encoder.weight": W["W_enc"].T.contiguous(), "encoder.bias": W["b_enc"]}
    save_file({**tensors, "W_dec": W["W_dec"], "b_dec": W["b_dec"]}, folder / WEIGHTS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "layers.3")


def test_it_is_a_topk_sae(folder: Path) -> None:
    pre = (raw_inputs() - W["b_dec"]) @ W["W_enc"] + W["b_enc"]
    kept, index = pre.relu().topk(K)
    f = torch.zeros_like(pre).scatter(1, index, kept)
    assert_same_codes(load_sae(folder), f, f @ W["W_dec"] + W["b_dec"])


def test_old_configs(folder: Path) -> None:
    old = {"expansion_factor": 3, "normalize_decoder": True, "num_latents": 0, "k": K}
    (folder / CONFIG).write_text(json.dumps({**old, "signed": False, "d_in": D_IN}))
    load_sae(folder)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("layers.3", "layers.3.resid_post"),
        ("layers.3.mlp", "layers.3.mlp_out"),
        ("layers.3.attention", None),
        ("embed_in", None),
    ],
)
def test_where_it_belongs(name: str, site: str | None, tmp_path: Path) -> None:
    assert load_sae(write(tmp_path / name)).provenance["site"] == site


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.pop("d_in"), "not the config of an SAE of sparsify (no key 'd_in')"),
        (lambda c: c.update(d_in=48), ".d_in: says 48, but sae.safetensors has 16"),
        (lambda c: c.update(num_latents=16), ".num_latents: says 16, but sae.safetensors has 48"),
        (
            lambda c: c.update(num_latents=0, expansion_factor=4),
            ".expansion_factor: says 4, but sae.safetensors has 3.0",
        ),
        (
            lambda c: c.update(num_latents=0, expansion_factor=None),
            ".expansion_factor: expected an integer, got None",
        ),
        (lambda c: c.update(num_latents=0), ".expansion_factor: says 32, but"),
        (lambda c: c.update(activation="groupmax"), ".activation: 'groupmax' cannot be read"),
        (lambda c: c.update(activation=["topk"]), ".activation: ['topk'] cannot be read"),
        (lambda c: c.update(skip_connection=True), ".skip_connection: a skip connection adds"),
        (lambda c: c.update(transcode=True), ".transcode: a transcoder reconstructs another site"),
        (lambda c: c.update(signed=True), ".signed: signed codes are not rectified"),
        (lambda c: c.update(k=0), ".k: expected an integer from 1 to 48, got 0"),
        (lambda c: c.update(k=49), ".k: expected an integer from 1 to 48, got 49"),
        (lambda c: c.update(k="8"), ".k: expected an integer from 1 to 48, got '8'"),
    ],
)
def test_a_wrong_config_is_named(edit: Edit, words: str, folder: Path) -> None:
    edit_json(folder / CONFIG, edit)
    refused(folder, CONFIG, words)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("encoder.weight"), "missing tensor 'encoder.weight'"),
        (lambda t: t.pop("W_dec"), "missing tensor 'W_dec' for a SAE of sparsify"),
        (lambda t: t.update(W_skip=torch.ones(D_IN, D_IN)), "unknown tensor 'W_skip'"),
        (lambda t: t.update(W_dec=W["W_enc"]), "'W_dec' has shape (16, 48), expected (48, 16)"),
        (lambda t: t["W_dec"].fill_(torch.nan), "'W_dec' has values that are not finite"),
        (lambda t: t.update({"encoder.weight": torch.ones(4)}), "'encoder.weight' is no matrix"),
    ],
)
def test_wrong_tensors_are_named(edit: Edit, words: str, folder: Path) -> None:
    edit_safetensors(folder / WEIGHTS, edit)
    refused(folder, WEIGHTS, words)


def test_a_config_of_another_library(folder: Path) -> None:
    config: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "architecture": "standard"}
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, CONFIG, ".expansion_factor: says 32, but")
