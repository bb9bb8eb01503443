"""SAEs that SAELens made and saved, read by us."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, standard_sae, topk_sae
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from sae_bench.loading import load_sae, save_sae
from tests.foreign import D_IN, D_SAE, SHARED, K, assert_same_codes, raw_inputs, some
from tests.interop.modules import filled

FREE = {"apply_b_dec_to_input": False}
EDGES = {"threshold": torch.linspace(-0.5, 1.5, D_SAE).clamp(min=-0.25)}


@dataclass(frozen=True)
class Case:
    """A class of SAELens, its configuration and weights, and what we read it as.

    trained: whether it is a training class, which saves itself for inference.
    """

    sae: type
    config: type
    ours: str
    vectors: tuple[str, ...] = ("b_enc",)
    options: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    trained: bool = False

    def build(self, **metadata: Any) -> Any:
        """The SAE with non-trivial weights."""
        where = {"hook_name": "blocks.0.hook_resid_post", "model_name": "tiny", "context_size": 16}
        config = self.config(
            d_in=D_IN, d_sae=D_SAE, metadata=SAEMetadata(**where | metadata), **self.options
        )
        return filled(self.sae(config), **some(*self.vectors) | self.weights)


STANDARD = (standard_sae.StandardSAE, standard_sae.StandardSAEConfig, "ReLUSAE")
TOPK = (topk_sae.TopKSAE, topk_sae.TopKSAEConfig, "TopKSAE")
JUMP = (jumprelu_sae.JumpReLUSAE, jumprelu_sae.JumpReLUSAEConfig, "JumpReLUSAE")
GATED = (gated_sae.GatedSAE, gated_sae.GatedSAEConfig, "GatedSAE")
THRESHOLD = ("b_enc", "threshold")
GATES = ("b_gate", "b_mag", "r_mag")
RESCALE = {"rescale_acts_by_decoder_norm": True}
TOP = {"b_enc": torch.linspace(-4, 0, D_SAE)}  # fewer than 24 of them are positive at most tokens

CASES = {
    "standard": Case(*STANDARD),
    "standard, x as it is": Case(*STANDARD, options=FREE),
    "standard, average norm": Case(
        *STANDARD, options={"normalize_activations": "expected_average_only_in"}
    ),
    "standard, whitening": Case(
        *STANDARD, options={"normalize_activations": "covariance_whitening"}
    ),
    "topk": Case(*TOPK, options={"k": K}),
    "topk, x as it is": Case(*TOPK, options={"k": K, **FREE}),
    "topk, rescaled": Case(*TOPK, options={"k": K, **RESCALE}),
    "topk, rescaled, x as it is": Case(*TOPK, options={"k": K, **RESCALE, **FREE}),
    "topk, fewer than k positive": Case(*TOPK, options={"k": 24}, weights=TOP),
    "jumprelu": Case(*JUMP, THRESHOLD),
    "jumprelu, x as it is": Case(*JUMP, THRESHOLD, FREE),
    "jumprelu, negative thresholds": Case(*JUMP, THRESHOLD, weights=EDGES),
    "gated": Case(*GATED, GATES),
    "gated, x as it is": Case(*GATED, GATES, FREE),
    "trained standard": Case(
        standard_sae.StandardTrainingSAE,
        standard_sae.StandardTrainingSAEConfig,
        "ReLUSAE",
        trained=True,
    ),
    "trained topk": Case(
        topk_sae.TopKTrainingSAE,
        topk_sae.TopKTrainingSAEConfig,
        "TopKSAE",
        options={"k": K, **RESCALE},
        trained=True,
    ),
    "trained gated": Case(
        gated_sae.GatedTrainingSAE,
        gated_sae.GatedTrainingSAEConfig,
        "GatedSAE",
        GATES,
        trained=True,
    ),
    "trained jumprelu": Case(
        jumprelu_sae.JumpReLUTrainingSAE,
        jumprelu_sae.JumpReLUTrainingSAEConfig,
        "JumpReLUSAE",
        THRESHOLD,
        trained=True,
    ),
    **{
        f"trained batchtopk{', rescaled' if rescale else ''}": Case(
            batchtopk_sae.BatchTopKTrainingSAE,
            batchtopk_sae.BatchTopKTrainingSAEConfig,
            "JumpReLUSAE",
            options={"k": 4.5, "rescale_acts_by_decoder_norm": rescale},
            weights={"topk_threshold": torch.tensor(SHARED, dtype=torch.float64)},
            trained=True,
        )
        for rescale in (False, True)
    },
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def saved(case: Case, path: Path, **metadata: Any) -> Any:
    """Writes it, and gives what SAELens itself reads there."""
    sae = case.build(**metadata)
    write: Callable[[Path], Any] = sae.save_inference_model if case.trained else sae.save_model
    write(path)
    return SAE.load_from_disk(path)


@each
@torch.no_grad()
def test_codes_and_reconstructions_are_equal(case: Case, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path)
    f = theirs.encode(raw_inputs())
    ours = load_sae(tmp_path)
    assert type(ours).__name__ == case.ours
    assert_same_codes(ours, f, theirs.decode(f))
    assert ours.provenance["model"] == "tiny"
    assert ours.provenance["site"] == "layers.0.resid_post"
    assert ours.provenance["context"] == {"length": 16}


@each
def test_weights_survive_us(case: Case, tmp_path: Path) -> None:
    """SAELens -> ours -> SAELens: equal tensors, where the convention is the same already."""
    theirs = saved(case, tmp_path / "theirs")
    save_sae(load_sae(tmp_path / "theirs"), tmp_path / "ours", "saelens")
    back = SAE.load_from_disk(tmp_path / "ours")
    with torch.no_grad():
        f = theirs.encode(raw_inputs())
        torch.testing.assert_close(back.encode(raw_inputs()), f, rtol=0, atol=2e-5)
        torch.testing.assert_close(back.decode(f), theirs.decode(f), rtol=0, atol=2e-4)
    assert type(back) is type(theirs)
    keys = ("hook_name", "model_name", "context_size")
    assert [back.cfg.metadata[key] for key in keys] == [theirs.cfg.metadata[key] for key in keys]
    if case.options.keys() & {*FREE, *RESCALE}:
        return
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        expected = tensor.clamp(min=0) if name == "threshold" else tensor
        assert torch.equal(after[name], expected), name


@torch.no_grad()
def test_heads_are_joined(tmp_path: Path) -> None:
    """An SAE of hook_z takes (batch, head, d_head) there, and (batch, d_in) here."""
    case = Case(*JUMP, THRESHOLD, {"reshape_activations": "hook_z"})
    theirs = saved(case, tmp_path, hook_name="blocks.3.attn.hook_z")
    x = raw_inputs()
    f = theirs.encode(x.reshape(len(x), 2, 8))
    ours = load_sae(tmp_path)
    assert_same_codes(ours, f, theirs.decode(f))
    assert ours.provenance["site"] == "layers.3.attn_z"


@torch.no_grad()
def test_bfloat16_weights_are_read_as_they_are(tmp_path: Path) -> None:
    theirs = Case(*JUMP, THRESHOLD, {"dtype": "bfloat16"}).build()
    theirs.save_model(tmp_path)
    exact = SAE.load_from_disk(tmp_path, dtype="float32")
    f = exact.encode(raw_inputs())
    assert_same_codes(load_sae(tmp_path), f, exact.decode(f))


@torch.no_grad()
@pytest.mark.parametrize("k", [None, K])
def test_configs_of_the_first_versions(k: int | None, tmp_path: Path) -> None:
    """Flat, without a version; TopK was an activation of standard SAEs."""
    case = Case(*TOPK, options={"k": k}) if k else Case(*STANDARD)
    case.build().save_model(tmp_path)
    activation = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": k}} if k else {}
    config = {
        **{"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu"},
        **{"model_name": "gpt2-small", "hook_point": "blocks.0.hook_resid_pre"},
        **{"normalize_activations": False, "context_size": 128},
        **activation,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    theirs, ours = SAE.load_from_disk(tmp_path), load_sae(tmp_path)
    f = theirs.encode(raw_inputs())
    assert_same_codes(ours, f, theirs.decode(f))
    assert ours.provenance["site"] == "layers.0.resid_pre"
