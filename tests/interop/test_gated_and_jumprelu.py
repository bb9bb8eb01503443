"""JumpReLU SAEs in other people's Gated classes, and their Gated SAEs as JumpReLU SAEs."""

from pathlib import Path

import pytest
import torch
from dictionary_learning.dictionary import GatedAutoEncoder
from dictionary_learning.utils import load_dictionary
from sae_lens import SAE
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig

from architectures import JumpReLUSAE
from sae_bench.conversion import to_gated, to_jumprelu
from sae_bench.loading import load_sae, save_sae
from sae_bench.sae import SparseAutoencoder
from tests.foreign import D_IN, D_SAE, SAES, assert_same_codes, raw_inputs, some
from tests.interop.modules import filled

WITH_THRESHOLDS = {name: sae for name, sae in SAES.items() if name != "TopKSAE"}
each = pytest.mark.parametrize("sae", WITH_THRESHOLDS.values(), ids=WITH_THRESHOLDS)
GATES = ("b_gate", "b_mag", "r_mag")


def effective_threshold() -> torch.Tensor:
    """b_mag - exp(r_mag) b_gate of the Gated SAEs here."""
    tensors = some(*GATES)
    return tensors["b_mag"] - tensors["r_mag"].exp() * tensors["b_gate"]


def test_some_gates_are_open_wherever_the_magnitude_is_positive() -> None:
    negative = int((effective_threshold() < 0).sum())
    assert D_SAE / 8 < negative < D_SAE * 7 / 8


@each
@torch.no_grad()
def test_as_gated_in_saelens(sae: SparseAutoencoder, tmp_path: Path) -> None:
    save_sae(to_gated(sae), tmp_path, "saelens")
    theirs = SAE.load_from_disk(tmp_path)
    assert isinstance(theirs, GatedSAE)
    f = theirs.encode(raw_inputs())
    assert_same_codes(sae, f, theirs.decode(f))


@each
@torch.no_grad()
def test_as_gated_in_dictionary_learning(sae: SparseAutoencoder, tmp_path: Path) -> None:
    save_sae(to_gated(sae), tmp_path, "dictionary-learning")
    theirs, _ = load_dictionary(str(tmp_path), device="cpu")
    assert isinstance(theirs, GatedAutoEncoder)
    f = theirs.encode(raw_inputs())
    assert_same_codes(sae, f, theirs.decode(f))


@torch.no_grad()
def test_theirs_as_jumprelu(tmp_path: Path) -> None:
    theirs = filled(GatedSAE(GatedSAEConfig(d_in=D_IN, d_sae=D_SAE)), **some(*GATES))
    theirs.save_model(tmp_path)
    ours = to_jumprelu(load_sae(tmp_path))
    assert isinstance(ours, JumpReLUSAE)
    f = theirs.encode(raw_inputs())
    assert_same_codes(ours, f, theirs.decode(f))
    torch.testing.assert_close(ours.threshold, effective_threshold().clamp(min=0))


@torch.no_grad()
def test_theirs_as_jumprelu_in_saelens(tmp_path: Path) -> None:
    theirs = filled(GatedSAE(GatedSAEConfig(d_in=D_IN, d_sae=D_SAE)), **some(*GATES))
    theirs.save_model(tmp_path / "gated")
    ours = load_sae(tmp_path / "gated")
    save_sae(to_jumprelu(ours), tmp_path / "jumprelu", "saelens")
    jump = SAE.load_from_disk(tmp_path / "jumprelu")
    f = jump.encode(raw_inputs())
    assert_same_codes(ours, f, jump.decode(f))
