"""dictionary_learning's folders, without the library: conventions, and files that are refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.loading import load_sae, save_sae
from tests.foreign import (
    D_IN,
    D_SAE,
    SAES,
    SHARED,
    K,
    assert_same_codes,
    placed,
    raw_inputs,
    weights,
)
from tests.refusals import refused
from tests.sae_bench.formats.files import Edit, Payload, edit_json, edit_pt

WEIGHTS, CONFIG = "ae.pt", "config.json"
W = weights()
LINEAR = {"encoder.weight": W["W_enc"].T, "decoder.weight": W["W_dec"].T}
BIASED = {**LINEAR, "encoder.bias": W["b_enc"]}
TOPK = {
    **BIASED,
    "b_dec": W["b_dec"],
    "k": torch.tensor(K, dtype=torch.int32),
    "threshold": torch.tensor(SHARED),
}
STATES: dict[str, dict[str, Tensor]] = {
    "AutoEncoder": {**BIASED, "bias": W["b_dec"]},
    "AutoEncoderNew": {**BIASED, "decoder.bias": W["b_dec"]},
    "JumpReluAutoEncoder": {name: W[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    | {"threshold": W["threshold"]},
    "BatchTopKSAE": TOPK,
    "AutoEncoderTopK": TOPK,
}


def write(folder: Path, dict_class: str, **trainer: Any) -> Path:
    """A folder as the library's training loop writes it."""
    sizes = {"dict_class": dict_class, "activation_dim": D_IN, "dict_size": D_SAE}
    (folder / CONFIG).write_text(json.dumps({"trainer": {**sizes, **trainer}, "buffer": {}}))
    state = {name: tensor.contiguous().clone() for name, tensor in STATES[dict_class].items()}
    torch.save(state, folder / WEIGHTS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, "BatchTopKSAE", k=K)


# --- conventions --------------------------------------------------------------------------------


@pytest.mark.parametrize("dict_class", STATES)
def test_what_each_class_computes(dict_class: str, tmp_path: Path) -> None:
    write(tmp_path, dict_class)
    subtracted = dict_class not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    f = ((raw_inputs() - subtracted * W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
    if dict_class == "JumpReluAutoEncoder":
        f = f * (f > W["threshold"])
    if dict_class == "BatchTopKSAE":
        f = f * (f > SHARED)
    if dict_class == "AutoEncoderTopK":
        kept, index = f.topk(K)
        f = torch.zeros_like(f).scatter(1, index, kept)
    assert_same_codes(load_sae(tmp_path), f, f @ W["W_dec"] + W["b_dec"])


@pytest.mark.parametrize("threshold", [-1.0, 0.0])
def test_unset_thresholds_are_zero(threshold: float, folder: Path) -> None:
    edit_pt(folder / WEIGHTS, lambda s: s["threshold"].fill_(threshold))
    sae = load_sae(folder)
    assert sae.threshold is not None
    assert not sae.threshold.any()
    assert sae.activation.k == K  # type: ignore[attr-defined]


def test_negative_thresholds_act_as_zero(tmp_path: Path) -> None:
    """The library rectifies what is above them."""
    write(tmp_path, "JumpReluAutoEncoder")
    edit_pt(tmp_path / WEIGHTS, lambda s: s["threshold"].fill_(-0.5))
    f = (raw_inputs() @ W["W_enc"] + W["b_enc"]).relu()
    assert_same_codes(load_sae(tmp_path), f, f @ W["W_dec"] + W["b_dec"])


def test_what_we_write(tmp_path: Path) -> None:
    sae = placed(SAES["BatchTopKSAE"], model="m", site="layers.3.resid_post")
    save_sae(sae, tmp_path, "dictionary-learning")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["trainer"] == {
        "dict_class": "BatchTopKSAE",
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "k": K,
        "layer": 3,
        "submodule_name": "resid_post_layer_3",
        "lm_name": "m",
    }
    state = torch.load(tmp_path / WEIGHTS, weights_only=True)
    assert state.keys() == TOPK.keys()
    assert state["threshold"].item() == pytest.approx(SHARED)
    assert (state["k"].item(), state["k"].dtype) == (K, torch.int32)
    assert state["encoder.weight"].shape == (D_SAE, D_IN)


@pytest.mark.parametrize(
    ("layer", "name", "site"),
    [
        (3, "resid_post_layer_3", "layers.3.resid_post"),
        (3, "mlp_out_layer_3", "layers.3.mlp_out"),
        (3, "gpt_neox.layers.3", "gpt_neox.layers.3"),
        (3, None, None),
        (None, "resid_post_layer_3", "resid_post_layer_3"),
    ],
)
def test_where_it_belongs(layer: Any, name: Any, site: str | None, tmp_path: Path) -> None:
    write(tmp_path, "AutoEncoder", layer=layer, submodule_name=name)
    sae = load_sae(tmp_path)
    assert sae.provenance["site"] == site
    save_sae(sae, tmp_path / "again", "saelens")


# --- refusals -----------------------------------------------------------------------------------


def test_a_payload_is_not_run(folder: Path) -> None:
    target = folder / "written"
    for content in (Payload(target), {"ae": Payload(target)}, {**TOPK, "more": Payload(target)}):
        torch.save(content, folder / WEIGHTS)
        refused(folder, WEIGHTS, "holds objects whose reading could run code")
        (folder / WEIGHTS).write_bytes(pickle.dumps(content))
        refused(folder, WEIGHTS, "holds objects whose reading could run code")
    assert not target.exists()


def test_the_payload_would_have_been_run(folder: Path) -> None:
    """Else the test above would prove nothing."""
    pickle.loads(pickle.dumps(Payload(folder / "written")))
    assert (folder / "written").exists()


def test_a_whole_module_is_not_read(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / WEIGHTS)
    refused(folder, WEIGHTS, "holds objects whose reading could run code")


def test_a_training_checkpoint(folder: Path) -> None:
    state = {"step": 10, "ae": TOPK, "optimizer": {"state": {}}, "norm_factor": 3.0}
    torch.save(state, folder / WEIGHTS)
    refused(folder, WEIGHTS, "a training checkpoint (it holds ae, norm_factor, optimizer, step)")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("encoder.weight"), "missing tensor 'encoder.weight'"),
        (lambda s: s.pop("b_dec"), "missing tensor 'b_dec' for a BatchTopKSAE"),
        (lambda s: s.update(bias=torch.ones(D_IN)), "unknown tensor 'bias' for a BatchTopKSAE"),
        (lambda s: s.update(b_dec=torch.ones(3)), "'b_dec' has shape (3,), expected (16,)"),
        (lambda s: s.update({"decoder.weight": W["W_dec"]}), "'decoder.weight' has shape (48, 16)"),
        (lambda s: s["b_dec"].fill_(torch.nan), "'b_dec' has values that are not finite"),
        (lambda s: s.update(b_dec=[1.0] * D_IN), "'b_dec' is a list, not a tensor"),
        (lambda s: s.update(b_dec=torch.ones(D_IN).to_sparse()), "'b_dec' is no plain tensor"),
        (lambda s: s.update(b_dec=torch.ones(D_IN, device="meta")), "'b_dec' is no plain tensor"),
        (lambda s: s.update(b_dec=torch.ones(D_IN).long()), "'b_dec' is torch.int64, expected"),
        (lambda s: s.pop("k"), "'k' is missing or no finite number"),
        (lambda s: s.pop("threshold"), "'threshold' is missing or no finite number"),
        (lambda s: s["threshold"].fill_(torch.inf), "'threshold' is missing or no finite number"),
        (
            lambda s: s.update(threshold=torch.tensor(1e300, dtype=torch.float64)),
            "'threshold' is missing",
        ),
        (lambda s: s.update(threshold=torch.ones(2)), "'threshold' is missing or no finite"),
        (lambda s: s.update(threshold=torch.tensor(1j)), "'threshold' is missing or no finite"),
        (lambda s: s.update(k=8), "'k' is missing or no finite number"),
        (lambda s: s["k"].fill_(0), ": 'k': expected an integer from 1 to 48, got 0"),
        (lambda s: s["k"].fill_(49), ": 'k': expected an integer from 1 to 48, got 49"),
        (lambda s: s.update(k=torch.tensor(8.5)), "expected an integer from 1 to 48, got 8.5"),
        (lambda s: s.update({3: torch.ones(1)}), "no dictionary of tensors by name"),
        (lambda s: s.clear(), "missing tensor 'encoder.weight'"),
    ],
)
def test_wrong_tensors_are_named(edit: Edit, words: str, folder: Path) -> None:
    edit_pt(folder / WEIGHTS, edit)
    refused(folder, WEIGHTS, words)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], 3])
def test_no_dictionary(content: Any, folder: Path) -> None:
    torch.save(content, folder / WEIGHTS)
    refused(folder, WEIGHTS, "no dictionary of tensors by name")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.pop("trainer"), "trainer.dict_class None cannot be read; known: AutoEncoder"),
        (lambda c: c.update(trainer=[]), "trainer.dict_class None cannot be read"),
        (lambda c: c["trainer"].pop("dict_class"), "trainer.dict_class None cannot be read"),
        (lambda c: c["trainer"].update(dict_class="CrossCoder"), "dict_class 'CrossCoder' cannot"),
        (lambda c: c["trainer"].update(dict_class=[1]), "trainer.dict_class [1] cannot be read"),
        (lambda c: c["trainer"].update(activation_dim=48), ".activation_dim: says 48, but ae.pt"),
        (lambda c: c["trainer"].update(dict_size=16), ".dict_size: says 16, but ae.pt has 48"),
        (lambda c: c["trainer"].update(k=9), ".k: says 9, but ae.pt has 8"),
    ],
)
def test_a_wrong_config_is_named(edit: Edit, words: str, folder: Path) -> None:
    edit_json(folder / CONFIG, edit)
    refused(folder, CONFIG, words)


@pytest.mark.parametrize("dict_class", ["AutoEncoder", "GatedAutoEncoder", "AutoEncoderNew"])
def test_weights_of_another_class(dict_class: str, folder: Path) -> None:
    edit_json(folder / CONFIG, lambda c: c["trainer"].update(dict_class=dict_class))
    refused(folder, WEIGHTS, f"for a {dict_class}")
