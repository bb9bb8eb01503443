"""Rescaling finds the factors that were taken away; thresholds keep codes and reach their L0."""

import pytest
import torch

from architectures import ReLUSAE, TopKSAE
from sae_bench.errors import InputError
from sae_bench.posthoc import rescaled, thresholded
from sae_bench.sae import SparseAutoencoder


def trained(d_in: int = 12, d_sae: int = 20) -> SparseAutoencoder:
    sae = ReLUSAE(d_in, d_sae, seed=3).eval()
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-1, 0.5, d_sae))
        sae.b_enc[0] = -1e6  # never fires
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(1))
    return sae


def inputs(rows: int = 3_000) -> torch.Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(2)) * 2


@torch.no_grad()
def error(sae: SparseAutoencoder, x: torch.Tensor) -> float:
    return float((x - sae(x)).square().sum())


def test_known_factors_are_found() -> None:
    """x made of the SAE's own codes, each latent by a factor of its own, is reconstructed."""
    sae, x = trained(), inputs()
    factors = torch.linspace(0.5, 3, sae.d_sae)
    f = sae.encode(x)
    target = (f * factors) @ sae.W_dec + sae.b_dec

    class Fixed(ReLUSAE):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return f[: len(x)]

    fixed = Fixed(12, 20).eval()
    fixed.load_state_dict(sae.state_dict())
    found = rescaled(fixed, target.detach(), chunk=len(x))
    ratio = (found.W_dec.norm(dim=1) / sae.W_dec.norm(dim=1)).detach()
    torch.testing.assert_close(ratio[1:], factors[1:], rtol=1e-2, atol=0)
    assert ratio[0] == 1


def test_rescaling_keeps_codes_and_lowers_the_error() -> None:
    sae, x = trained(), inputs()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    found = rescaled(sae, x, chunk=700)
    assert torch.equal(found.encode(x), sae.encode(x))
    assert error(found, x) < error(sae, x)
    again = rescaled(found, x)
    torch.testing.assert_close(again.W_dec, found.W_dec, rtol=1e-2, atol=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


@pytest.mark.parametrize("l0", [0.5, 2.0, 6.0])
def test_a_threshold_reaches_its_l0_and_keeps_the_codes(l0: float) -> None:
    sae, x = trained(), inputs()
    found = thresholded(sae, x, l0)
    f, codes = found.encode(x), sae.encode(x)
    assert float((f > 0).sum(1).float().mean()) == pytest.approx(l0, abs=2e-3)
    on = f > 0
    torch.testing.assert_close(f[on], codes[on])
    assert codes[on].min() >= codes[~on].max() - 1e-5


def test_impossible_l0s_are_refused() -> None:
    with pytest.raises(InputError, match="L0 of 19 was asked for"):
        thresholded(trained(), inputs(), 19)
    with pytest.raises(InputError):
        thresholded(TopKSAE(12, 20).eval(), inputs(), 2)
