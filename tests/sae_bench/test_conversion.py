"""From SAEs to plain ones and back; nothing is exported that the SAE does not compute."""

from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.activations import JumpReLU, Latents, RawThreshold, TopK
from sae_bench.conversion import exportable, sae_of, to_gated, to_jumprelu
from sae_bench.errors import InputError
from sae_bench.plain import Plain, PlainBatchTopK, PlainReLU
from sae_bench.sae import SparseAutoencoder
from tests.foreign import D_SAE, SAES, SHARED, placed, random_sae, raw_inputs, same_sae

each = pytest.mark.parametrize("name", SAES)
THRESHOLDED = [name for name in SAES if name != "TopKSAE"]


@each
def test_there_and_back(name: str) -> None:
    sae = SAES[name]
    back = sae_of(exportable(sae))
    same_sae(back, sae)
    assert not back.training
    assert back.W_enc.data_ptr() != sae.W_enc.data_ptr()


@pytest.mark.parametrize("name", THRESHOLDED)
def test_as_jumprelu_and_as_gated(name: str) -> None:
    sae = placed(SAES[name], site="layers.3.resid_post")
    for convert, cls in ((to_jumprelu, JumpReLUSAE), (to_gated, GatedSAE)):
        converted = convert(sae)
        assert type(converted) is cls
        same_sae(converted, sae)
        same_sae(to_jumprelu(converted), sae)
        same_sae(to_gated(converted), sae)
        assert converted.provenance["site"] == "layers.3.resid_post"
        assert converted.provenance["converted_from"] == type(sae).__name__


def test_topk_is_neither() -> None:
    for convert in (to_jumprelu, to_gated):
        with pytest.raises(InputError, match="a TopK SAE has no equal JumpReLU SAE"):
            convert(SAES["TopKSAE"])


def test_batchtopk_keeps_its_threshold_and_its_k() -> None:
    plain = exportable(SAES["BatchTopKSAE"])
    assert isinstance(plain, PlainBatchTopK)
    assert plain.k == SAES["BatchTopKSAE"].activation.k  # type: ignore[attr-defined]
    torch.testing.assert_close(plain.threshold, torch.full((D_SAE,), SHARED))
    unset = exportable(SAES["unset threshold"])
    assert isinstance(unset, PlainBatchTopK)
    assert not unset.threshold.any()


@each
def test_exporting_leaves_the_sae_as_it_was(name: str) -> None:
    sae = SAES[name]
    before, random = {n: t.clone() for n, t in sae.state_dict().items()}, torch.get_rng_state()
    for training in (True, False):
        exportable(sae.train(training))
        assert sae.training == training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[n]) for n, tensor in sae.state_dict().items())


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@each
def test_units_do_not_matter(name: str, scale: float) -> None:
    sae = random_sae(type(SAES[name])).fold_(scale)
    same_sae(sae_of(exportable(sae)).fold_(1 / scale), random_sae(type(SAES[name])))


def test_wide_saes_far_from_the_origin() -> None:
    """Reconstructions near zero whose terms are large: round-off is not a difference."""
    sae = ReLUSAE(64, 1024).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.b_dec.copy_(1e5 * torch.randn(64, generator=generator))
    assert isinstance(exportable(sae), PlainReLU)


class Scaled(ReLUSAE):
    """Overrides what it computes, not what it says."""

    def decode(self, f: Tensor) -> Tensor:
        return super().decode(1.01 * f)


class Shifted(JumpReLUSAE):
    """The same in the encoder."""

    def latents(self, x: Tensor) -> Any:
        return super().latents(1.01 * x)


class NotSubtracting(TopKSAE):
    """Another convention of b_dec."""

    def affine(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return x @ W + b


class Lower(JumpReLUSAE):
    """Half the threshold that it says."""

    def latents(self, x: Tensor) -> Any:
        lower = {"raw_threshold": self.raw_threshold / 2}
        return self.activation(self.affine(x, self.W_enc, self.b_enc), lower, self.kernel)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("cls", [Scaled, Shifted, NotSubtracting, Lower])
def test_what_an_sae_does_not_compute_is_refused(
    cls: type[SparseAutoencoder], scale: float
) -> None:
    with pytest.raises(InputError, match=f"{cls.__name__} computes other codes"):
        exportable(built(cls).fold_(scale))


def built(cls: type[SparseAutoencoder]) -> SparseAutoencoder:
    slots = {"activation": JumpReLU(RawThreshold())} if cls is Lower else {}
    return random_sae(cls, **slots)


def test_a_threshold_beside_a_large_b_dec() -> None:
    sae = built(Lower)
    with torch.no_grad():
        sae.b_dec.mul_(1e4)
    with pytest.raises(InputError, match="Lower computes other codes"):
        exportable(sae)


def test_an_unknown_plain_sae() -> None:
    class PlainOther(Plain):
        """Of nobody's."""

    weights = exportable(SAES["ReLUSAE"])
    with pytest.raises(InputError, match="no architecture computes a PlainOther"):
        sae_of(PlainOther(weights.W_enc, weights.W_dec, weights.b_dec))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@each
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    sae = random_sae(type(SAES[name])).to(dtype)
    assert {tensor.dtype for tensor in exportable(sae).tensors.values()} == {torch.float32}
    if dtype == torch.float64 and name in THRESHOLDED:
        x = raw_inputs()
        expected = sae.encode(x.double()).float()
        torch.testing.assert_close(to_jumprelu(sae).encode(x), expected, rtol=1e-4, atol=1e-4)


# -- subclasses that compute something else and do not say so -------------------------------------


class Doubled(TopKSAE):
    def latents(self, x: torch.Tensor) -> Latents:
        pre, f, step = super().latents(x)
        return Latents(pre, f if self.training else 2 * f, step)


class Masked(JumpReLUSAE):
    def latents(self, x: torch.Tensor) -> Latents:
        pre, f, step = super().latents(x)
        return Latents(pre, torch.cat([f[:, :7], 0 * f[:, 7:8], f[:, 8:]], 1), step)


class Skipping(ReLUSAE):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


@pytest.mark.parametrize(
    "sae",
    [
        Doubled(16, 4096, activation=TopK(2)),
        Masked(16, 512),
        Skipping(16, 64),
    ],
    ids=lambda sae: type(sae).__name__,
)
def test_what_is_not_plain_is_refused_however_sparse_it_is(sae: SparseAutoencoder) -> None:
    with pytest.raises(InputError, match="override `plain`"):
        exportable(sae)


def test_narrow_weights_are_converted_in_float32() -> None:
    """A bias that b_dec W_enc is added to would lose that sum's digits again in bfloat16."""
    sae = JumpReLUSAE(16, 32).to(torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in exportable(sae).tensors.values())
