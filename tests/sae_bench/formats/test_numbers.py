"""Numbers at the edge of what a format holds: refused in a line, or written right; never as
infinities, nor as what computes something else."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import ReLUSAE, TopKSAE
from sae_bench.activations import Latents, TopK
from sae_bench.conversion import to_gated, to_jumprelu
from sae_bench.errors import InputError
from sae_bench.formats import FORMATS
from sae_bench.loading import load_sae, save_sae
from sae_bench.plain import Plain
from sae_bench.sae import SparseAutoencoder
from tests.foreign import D_IN, D_SAE, SAES, raw_inputs, same_sae
from tests.refusals import refused
from tests.sae_bench.formats.files import edit_json, edit_npz, edit_pt, edit_safetensors

OTHERS = [name for name in FORMATS if name not in ("sae-ablations", "sparsify")]
others = pytest.mark.parametrize("format", OTHERS)


@torch.no_grad()
def changed(name: str, change: Callable[[Any], object]) -> SparseAutoencoder:
    sae = copy.deepcopy(SAES[name])
    change(sae)
    return sae


def complaint(sae: SparseAutoencoder, format: str, path: Path) -> str:
    """What is said against writing it; nothing must be there then."""
    with pytest.raises(InputError) as caught:
        save_sae(sae, path / "new", format)
    assert not (path / "new").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- written ------------------------------------------------------------------------------------


@others
def test_gates_whose_scale_overflows(format: str, tmp_path: Path) -> None:
    sae = changed("GatedSAE", lambda s: s.r_mag[:5].fill_(100.0))
    text = complaint(sae, format, tmp_path)
    assert text == "GatedSAE: its W_enc exp(r_mag) is not finite for 5 of 48 latents"
    for convert in (to_gated, to_jumprelu):
        with pytest.raises(InputError, match="for 5 of 48 latents"):
            convert(sae)


@pytest.mark.parametrize("r_mag", [-20.0, -200.0])
def test_gates_whose_scale_vanishes(r_mag: float, tmp_path: Path) -> None:
    """b_mag - exp(r_mag) b_gate is b_mag then: as a threshold, it would say nothing of the gate."""

    def vanish(sae: Any) -> None:
        sae.r_mag[:5] = r_mag
        sae.b_mag[:5] = 1.0

    sae = changed("GatedSAE", vanish)
    text = complaint(sae, "gemma-scope", tmp_path)
    assert text.startswith("GatedSAE: as a JumpReLU SAE 5 latents would be on elsewhere")
    for format in ("saelens", "dictionary-learning"):
        save_sae(sae, tmp_path / format, format)
        same_sae(load_sae(tmp_path / format), sae)


@others
def test_biases_that_overflow_in_another_convention(format: str, tmp_path: Path) -> None:
    def far(sae: Any) -> None:
        sae.W_enc[:, 3] = 1e30
        sae.b_dec.fill_(1e30)

    text = complaint(changed("ReLUSAE", far), format, tmp_path)
    assert text == "ReLUSAE: its b_dec W_enc is not finite for 1 of 48 latents"


@others
def test_negative_thresholds_of_ours_are_not_written(format: str, tmp_path: Path) -> None:
    """Codes are negative there; other libraries would rectify them."""
    sae = changed("zero thresholds", lambda s: s.raw_threshold[:5].fill_(-1.0))
    assert (sae.encode(raw_inputs()) < 0).any()
    text = complaint(sae, format, tmp_path)
    assert text == "JumpReLUSAE: its threshold is negative for 5 of 48 latents"
    save_sae(sae, tmp_path / "ours", "sae-ablations")
    assert torch.equal(load_sae(tmp_path / "ours").encode(raw_inputs()), sae.encode(raw_inputs()))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(format: str, dtype: torch.dtype, tmp_path: Path) -> None:
    names = ("GatedSAE", "ReLUSAE", "zero thresholds") if format != "sparsify" else ("TopKSAE",)
    for name in names:
        sae = copy.deepcopy(SAES[name]).to(dtype)
        save_sae(sae, tmp_path, format)
        loaded = load_sae(tmp_path)
        assert loaded.W_dec.dtype == (dtype if format == "sae-ablations" else torch.float32)
        same_sae(loaded.float(), copy.deepcopy(sae).float())


@others
def test_double_precision_that_single_cannot_hold(format: str, tmp_path: Path) -> None:
    sae = changed("ReLUSAE", lambda s: s.double().W_enc[0, 0].fill_(1e200))
    assert complaint(sae, format, tmp_path) == (
        "ReLUSAE: its W_enc is not finite for 1 of 48 latents"
    )


class Constant(ReLUSAE):
    """A constant of a type of its own."""

    def latents(self, x: Tensor) -> Latents:
        return super().latents(x @ torch.eye(self.d_in))


class Keeping(ReLUSAE):
    """What it keeps cannot be copied."""

    def latents(self, x: Tensor) -> Latents:
        found = super().latents(x)
        self.kept = found.f
        return found


class NoPlain(ReLUSAE):
    """A method that returns nothing."""

    def plain(self) -> Plain:
        return None  # type: ignore[return-value]


class Transposed(ReLUSAE):
    """Shapes that do not go together."""

    def plain(self) -> Plain:
        found = super().plain()
        object.__setattr__(found, "W_enc", self.W_enc.T)
        return found


class Complex(ReLUSAE):
    """Numbers that no format has."""

    def plain(self) -> Plain:
        found = super().plain()
        object.__setattr__(found, "b_enc", self.b_enc.to(torch.complex64))
        return found


@others
@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Constant, "cannot be compared with its `plain` in float64 (RuntimeError: "),
        (Keeping, "its tensors have to be parameters or buffers"),
        (NoPlain, "its `plain` gives a NoneType, no Plain"),
        (Complex, "its b_enc is torch.complex64, expected floating point"),
        (Transposed, "its W_dec has shape (48, 16), expected (16, 48) as for W_enc"),
    ],
)
def test_classes_of_a_user(
    format: str, cls: type[SparseAutoencoder], words: str, tmp_path: Path
) -> None:
    sae = cls(D_IN, D_SAE)
    sae.encode(raw_inputs())
    text = complaint(sae, format, tmp_path)
    assert text.startswith(f"{cls.__name__}: ")
    assert words in text


class Tied(TopKSAE):
    """Encoder and decoder share their memory, and so do two parameters."""

    @property
    def W_enc(self) -> Tensor:  # type: ignore[override]
        return self.W_dec.T

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = super().initial(generator)
        del tensors["W_enc"]
        return {**tensors, "again": tensors["b_enc"]}


@pytest.mark.parametrize("format", ["saelens", "dictionary-learning", "sparsify", "sae-ablations"])
def test_shared_memory(format: str, tmp_path: Path) -> None:
    sae = Tied(D_IN, D_SAE, activation=TopK(8)).eval()
    save_sae(sae, tmp_path, format)
    same_sae(load_sae(tmp_path), sae)


@pytest.mark.parametrize("format", FORMATS)
def test_tensors_without_values(format: str, tmp_path: Path) -> None:
    sae = copy.deepcopy(SAES["TopKSAE"]).to("meta")
    assert complaint(sae, format, tmp_path) == (
        "TopKSAE: its tensors are on the device meta, without values"
    )


# --- read ---------------------------------------------------------------------------------------


def test_gates_of_others_whose_scale_overflows(tmp_path: Path) -> None:
    save_sae(SAES["GatedSAE"], tmp_path / "one", "saelens")
    weights = tmp_path / "one" / "sae_weights.safetensors"
    edit_safetensors(weights, lambda t: t["r_mag"][:3].fill_(100.0))
    words = ": its W_enc exp(r_mag) is not finite for 3 of 48 latents"
    refused(tmp_path / "one", weights.name, words)
    edit_json(tmp_path / "one" / "cfg.json", lambda c: c.update(apply_b_dec_to_input=False))
    refused(tmp_path / "one", weights.name, "for 3 of 48 latents")
    save_sae(SAES["GatedSAE"], tmp_path / "two", "dictionary-learning")
    edit_pt(tmp_path / "two" / "ae.pt", lambda s: s["r_mag"][:3].fill_(100.0))
    refused(tmp_path / "two", "ae.pt", words)


def far(tensors: dict[str, Any]) -> None:
    tensors["W_enc"][:, 3] = 1e30
    tensors["b_dec"][:] = 1e30


def test_biases_that_overflow_in_our_convention(tmp_path: Path) -> None:
    words = ": its b_enc is not finite for 1 of 48 latents"
    save_sae(SAES["JumpReLUSAE"], tmp_path / "one", "gemma-scope")
    edit_npz(tmp_path / "one" / "params.npz", far)
    refused(tmp_path / "one", "params.npz", words)
    save_sae(SAES["JumpReLUSAE"], tmp_path / "two", "dictionary-learning")
    edit_pt(tmp_path / "two" / "ae.pt", far)
    refused(tmp_path / "two", "ae.pt", words)
    save_sae(SAES["JumpReLUSAE"], tmp_path / "three", "saelens")
    edit_safetensors(tmp_path / "three" / "sae_weights.safetensors", far)
    edit_json(tmp_path / "three" / "cfg.json", lambda c: c.update(apply_b_dec_to_input=False))
    refused(tmp_path / "three", "sae_weights.safetensors", words)


def test_one_array_by_two_names(tmp_path: Path) -> None:
    save_sae(SAES["JumpReLUSAE"], tmp_path, "gemma-scope")
    edit_npz(tmp_path / "params.npz", lambda a: a.update(w_enc=2 * a["W_enc"]))
    refused(tmp_path, "params.npz", "an array is there twice")
