"""dictionary_learning's classes, read by us, and ours read by it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from torch import Tensor, nn

from sae_bench.loading import load_sae, save_sae
from sae_bench.sae import SparseAutoencoder
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
from tests.interop.modules import filled

W = weights()
LINEAR = {"encoder__weight": W["W_enc"].T, "decoder__weight": W["W_dec"].T}
BIASED = LINEAR | {"encoder__bias": W["b_enc"]}
SAME = {name: W[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
NEGATIVE = torch.linspace(-0.5, 1.5, D_SAE).clamp(min=-0.25)
GROUPS = [8, 16, 24]


@dataclass(frozen=True)
class Case:
    """A class of the library, its weights, and what we read it as.

    options: further arguments of the class.
    """

    cls: type[nn.Module]
    ours: str
    weights: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def saved(self, path: Path) -> nn.Module:
        """Writes it as the library's training loop does."""
        module = filled(self.cls(D_IN, D_SAE, **self.options), **self.weights)
        trainer = {
            **{"dict_class": self.cls.__name__, "activation_dim": D_IN, "dict_size": D_SAE},
            **{"layer": 3, "lm_name": "org/tiny", "submodule_name": "resid_post_layer_3"},
            **{"k": self.options.get("k")},
        }
        buffer = {"d_submodule": D_IN, "ctx_len": 16}
        path.mkdir(exist_ok=True)
        torch.save(module.state_dict(), path / "ae.pt")
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
        return module


TOP = {"k": K}


def shared(threshold: float) -> dict[str, Tensor]:
    return {"threshold": torch.tensor(threshold)}


CASES = {
    "AutoEncoder": Case(AutoEncoder, "ReLUSAE", BIASED | {"bias": W["b_dec"]}),
    "AutoEncoderNew": Case(AutoEncoderNew, "ReLUSAE", BIASED | {"decoder__bias": W["b_dec"]}),
    "GatedAutoEncoder": Case(
        GatedAutoEncoder,
        "GatedSAE",
        LINEAR
        | {"decoder_bias": W["b_dec"], "gate_bias": W["b_gate"]}
        | {"mag_bias": W["b_mag"], "r_mag": W["r_mag"]},
    ),
    "JumpReluAutoEncoder": Case(
        JumpReluAutoEncoder, "JumpReLUSAE", SAME | {"threshold": W["threshold"]}
    ),
    "JumpReluAutoEncoder, negative thresholds": Case(
        JumpReluAutoEncoder, "JumpReLUSAE", SAME | {"threshold": NEGATIVE}
    ),
    **{
        f"{cls.__name__}, threshold {threshold}": Case(
            cls, ours, BIASED | {"b_dec": W["b_dec"], **shared(threshold)}, TOP
        )
        for cls, ours in ((AutoEncoderTopK, "TopKSAE"), (BatchTopKSAE, "BatchTopKSAE"))
        for threshold in (SHARED, 0.0, -1.0)
    },
    "MatryoshkaBatchTopKSAE": Case(
        MatryoshkaBatchTopKSAE,
        "BatchTopKSAE",
        SAME | shared(SHARED),
        {**TOP, "group_sizes": GROUPS},
    ),
}


def outputs(module: Any) -> tuple[Tensor, Tensor]:
    f = module.encode(raw_inputs())
    return f, module.decode(f)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@torch.no_grad()
def test_theirs_read_by_us(case: Case, tmp_path: Path) -> None:
    module = case.saved(tmp_path)
    ours = load_sae(tmp_path)
    assert type(ours).__name__ == case.ours
    assert_same_codes(ours, *outputs(module))
    assert ours.provenance["model"] == "org/tiny"
    assert ours.provenance["site"] == "layers.3.resid_post"
    assert ours.provenance["context"] == {"length": 16}
    if case.cls is not AutoEncoder:  # its loader rescales codes
        assert_same_codes(ours, *outputs(load_dictionary(str(tmp_path), device="cpu")[0]))


@torch.no_grad()
def test_checkpoints_below(tmp_path: Path) -> None:
    module = CASES["GatedAutoEncoder"].saved(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_10.pt")
    assert_same_codes(load_sae(tmp_path / "checkpoints" / "ae_10.pt"), *outputs(module))


@pytest.mark.parametrize("sae", SAES.values(), ids=SAES)
@torch.no_grad()
def test_ours_read_by_the_library(sae: SparseAutoencoder, tmp_path: Path) -> None:
    sae = placed(sae, model="org/tiny", site="layers.3.resid_post", context={"high": 32})
    save_sae(sae, tmp_path, "dictionary-learning")
    module, config = load_dictionary(str(tmp_path), device="cpu")
    if isinstance(module, AutoEncoder):  # codes in units of decoder rows of norm 1
        f, x_hat = outputs(module)
        norms = sae.W_dec.norm(dim=1)
        assert_same_codes(sae, f / norms, x_hat)
        module = AutoEncoder.from_pretrained(tmp_path / "ae.pt", normalize_decoder=False)
    assert_same_codes(sae, *outputs(module))
    assert_same_codes(
        sae,
        *outputs(
            type(module).from_pretrained(
                tmp_path / "ae.pt",
                **({"normalize_decoder": False} if isinstance(module, AutoEncoder) else {}),
            )
        ),
    )
    assert config["trainer"]["layer"] == 3
    assert config["trainer"]["submodule_name"] == "resid_post_layer_3"
    assert config["trainer"]["lm_name"] == "org/tiny"
    assert config["buffer"] == {"d_submodule": D_IN, "ctx_len": 32}
