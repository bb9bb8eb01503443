"""SAELens' folders, without SAELens: conventions, and files that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_bench.loading import load_sae, save_sae
from tests.foreign import D_IN, D_SAE, SAES, K, assert_same_codes, placed, raw_inputs, some
from tests.refusals import refused
from tests.sae_bench.formats.files import Edit, edit_json, edit_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
METADATA = {
    "sae_lens_version": "6.54.12",
    "hook_name": "blocks.7.hook_mlp_out",
    "model_name": "org/model",
    "context_size": 64,
}


def write(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder as SAELens writes it."""
    folder.mkdir(exist_ok=True)
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32"}
    (folder / CONFIG).write_text(json.dumps({**sizes, "metadata": METADATA, **config}))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    return folder


@pytest.fixture
def jumprelu(tmp_path: Path) -> Path:
    return write(tmp_path, some("b_enc", "threshold"), architecture="jumprelu")


# --- conventions --------------------------------------------------------------------------------


@pytest.mark.parametrize("subtract", [True, False])
def test_b_dec_is_subtracted_if_the_config_says_so(subtract: bool, tmp_path: Path) -> None:
    W = some("b_enc", "threshold")
    write(tmp_path, W, architecture="jumprelu", apply_b_dec_to_input=subtract)
    x = raw_inputs()
    pre = (x - subtract * W["b_dec"]) @ W["W_enc"] + W["b_enc"]
    f = pre.relu() * (pre > W["threshold"])
    assert_same_codes(load_sae(tmp_path), f, f @ W["W_dec"] + W["b_dec"])


@pytest.mark.parametrize("subtract", [True, False])
def test_gates_share_the_encoder(subtract: bool, tmp_path: Path) -> None:
    W = some("b_gate", "b_mag", "r_mag")
    write(tmp_path, W, architecture="gated", apply_b_dec_to_input=subtract)
    x = raw_inputs() - subtract * W["b_dec"]
    magnitude = (x @ (W["W_enc"] * W["r_mag"].exp()) + W["b_mag"]).relu()
    f = magnitude * (x @ W["W_enc"] + W["b_gate"] > 0)
    assert_same_codes(load_sae(tmp_path), f, f @ W["W_dec"] + W["b_dec"])


@pytest.mark.parametrize("rescale", [True, False])
def test_topk_by_the_norms_of_decoder_rows(rescale: bool, tmp_path: Path) -> None:
    W = some("b_enc")
    write(tmp_path, W, architecture="topk", k=K, rescale_acts_by_decoder_norm=rescale)
    norms = W["W_dec"].norm(dim=1) if rescale else torch.ones(D_SAE)
    pre = ((raw_inputs() - W["b_dec"]) @ W["W_enc"] + W["b_enc"]) * norms
    kept, index = pre.topk(K)
    f = torch.zeros_like(pre).scatter(1, index, kept.relu())
    assert_same_codes(load_sae(tmp_path), f, f / norms @ W["W_dec"] + W["b_dec"])


def test_negative_thresholds_act_as_zero(jumprelu: Path) -> None:
    edit_safetensors(jumprelu / WEIGHTS, lambda t: t["threshold"].fill_(-0.5))
    threshold = load_sae(jumprelu).threshold
    assert threshold is not None
    assert not threshold.any()


@pytest.mark.parametrize("name", ["none", None, False, "expected_average_only_in"])
def test_normalisations_that_do_nothing(name: Any, jumprelu: Path) -> None:
    before = load_sae(jumprelu).encode(raw_inputs())
    edit_json(jumprelu / CONFIG, lambda c: c.update(normalize_activations=name))
    assert torch.equal(load_sae(jumprelu).encode(raw_inputs()), before)


def test_a_scaling_factor_of_ones(jumprelu: Path) -> None:
    edit_safetensors(jumprelu / WEIGHTS, lambda t: t.update(scaling_factor=torch.ones(D_SAE)))
    load_sae(jumprelu)
    edit_safetensors(jumprelu / WEIGHTS, lambda t: t["scaling_factor"].mul_(2))
    refused(jumprelu, WEIGHTS, "'scaling_factor' is not 1 everywhere")


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.7.hook_mlp_out", "layers.7.mlp_out"),
        ("blocks.11.hook_resid_pre", "layers.11.resid_pre"),
        ("blocks.0.attn.hook_z", "layers.0.attn_z"),
        ("blocks.0.ln1.hook_normalized", "blocks.0.ln1.hook_normalized"),
        (None, None),
    ],
)
def test_where_it_belongs(hook: Any, site: str | None, jumprelu: Path) -> None:
    edit_json(jumprelu / CONFIG, lambda c: c["metadata"].update(hook_name=hook))
    found = load_sae(jumprelu).provenance
    assert found["site"] == site
    assert found["model"] == "org/model"
    assert found["context"] == {"length": 64}
    assert found["saelens"]["architecture"] == "jumprelu"


@pytest.mark.parametrize(
    ("site", "hook", "reshape"),
    [
        ("layers.2.attn_z", "blocks.2.attn.hook_z", "hook_z"),
        ("layers.2.resid_post", "blocks.2.hook_resid_post", "none"),
        ("model.layers.2.mlp", "model.layers.2.mlp", "none"),
        (None, None, "none"),
    ],
)
def test_the_config_that_we_write(
    site: str | None, hook: str | None, reshape: str, tmp_path: Path
) -> None:
    context = {"class": "VariableLength", "high": 9}
    sae = placed(SAES["TopKSAE"], model="m", site=site, context=context)
    save_sae(sae, tmp_path, "saelens")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["reshape_activations"] == reshape
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == "none"
    assert (config["k"], config["rescale_acts_by_decoder_norm"]) == (K, False)
    metadata = config["metadata"]
    assert (metadata["hook_name"], metadata["model_name"]) == (hook, "m")
    assert metadata["context_size"] == 9
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.pop("d_in"), "missing key 'd_in'"),
        (lambda c: c.update(d_in=48), ".d_in: says 48, but sae_weights.safetensors has 16"),
        (lambda c: c.update(d_sae="48"), ".d_sae: expected an integer, got '48'"),
        (lambda c: c.update(architecture="transcoder"), "architecture 'transcoder' cannot be read"),
        (lambda c: c.update(architecture="batchtopk"), "has to be saved for inference"),
        (lambda c: c.update(architecture=["jumprelu"]), "architecture ['jumprelu'] cannot be read"),
        (lambda c: c.update(architecture=None), "architecture None cannot be read"),
        (
            lambda c: c.update(normalize_activations="layer_norm"),
            "normalize_activations 'layer_norm' works token by token",
        ),
        (
            lambda c: c.update(normalize_activations="constant_norm_rescale"),
            "normalize_activations 'constant_norm_rescale' works token by token",
        ),
        (
            lambda c: c.update(architecture="standard", activation_fn_str="tanh-relu"),
            "activation function 'tanh-relu' cannot be read",
        ),
        (
            lambda c: c.update(
                architecture="standard", activation_fn_str="topk", activation_fn_kwargs=[8]
            ),
            "activation function 'topk' cannot be read",
        ),
    ],
)
def test_a_wrong_config_is_named(edit: Edit, words: str, jumprelu: Path) -> None:
    edit_json(jumprelu / CONFIG, edit)
    refused(jumprelu, CONFIG, words)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("W_enc"), "missing tensor 'W_enc'"),
        (lambda t: t.pop("b_dec"), "missing tensor 'b_dec' for a jumprelu SAE of SAELens"),
        (lambda t: t.update(topk_threshold=torch.ones(())), "unknown tensor 'topk_threshold'"),
        (lambda t: t.update(W_enc=torch.ones(3)), "'W_enc' is no matrix"),
        (lambda t: t.update(W_dec=t["W_enc"].clone()), "'W_dec' has shape (16, 48), expected"),
        (lambda t: t["b_enc"].fill_(torch.nan), "'b_enc' has values that are not finite"),
        (lambda t: t.update(threshold=torch.ones(())), "'threshold' has shape (), expected (48,)"),
        (lambda t: t.update(b_enc=torch.ones(D_SAE).long()), "'b_enc' is torch.int64, expected"),
    ],
)
def test_wrong_tensors_are_named(edit: Edit, words: str, jumprelu: Path) -> None:
    edit_safetensors(jumprelu / WEIGHTS, edit)
    refused(jumprelu, WEIGHTS, words)


@pytest.mark.parametrize("architecture", ["standard", "topk", "gated"])
def test_weights_of_another_architecture(architecture: str, jumprelu: Path) -> None:
    edit_json(jumprelu / CONFIG, lambda c: c.update(architecture=architecture, k=K))
    refused(jumprelu, WEIGHTS, f"for a {architecture} SAE of SAELens")


@pytest.mark.parametrize("k", [None, 0, -1, D_SAE + 1, 8.5, "8", True, [8]])
def test_a_wrong_k(k: Any, tmp_path: Path) -> None:
    write(tmp_path, some("b_enc"), architecture="topk", k=k)
    refused(tmp_path, f"{CONFIG}.k", "expected an integer from 1 to 48, got")


def test_rescaling_by_a_row_of_norm_zero(tmp_path: Path) -> None:
    W = some("b_enc")
    W["W_dec"][3] = 0
    write(tmp_path, W, architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    refused(tmp_path, CONFIG, "one of them is zero")
