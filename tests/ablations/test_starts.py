"""The start of SAEs that are much wider than their input."""

import pytest
import torch
from torch.distributions import Normal

from ablations._starts import OffsetReLUSAE, offset
from architectures import JumpReLUSAE, ReLUSAE
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.arm import Arm
from sae_bench.penalties import L1
from sae_bench.recipe import Recipe

D_IN, D_SAE = 64, 4096
SIGMA = D_IN**-0.5


@pytest.mark.parametrize("deviations", [0.0, 1.0, 1.8])
def test_the_first_reconstruction_is_the_tail_times_x(deviations: float) -> None:
    x = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(0)) * SIGMA
    sae = OffsetReLUSAE(D_IN, D_SAE, offset=deviations * SIGMA)
    x_hat = sae.decode(sae.latents(x).f).detach()
    slope = float((x_hat * x).sum() / x.square().sum())
    tail = 1 - float(Normal(0, 1).cdf(torch.tensor(deviations)))
    assert slope == pytest.approx(D_SAE / D_IN * tail, rel=0.05)


def test_without_an_offset_it_is_relu() -> None:
    ours, plain = OffsetReLUSAE(8, 32, seed=1), ReLUSAE(8, 32, seed=1)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=0)


def test_arms_keep_all_else() -> None:
    recipe = Recipe(tokens=1_000, batch_size=100)
    relu = Arm(ReLUSAE, 32, recipe, seed=2, slots={"penalty": L1(0.1)})
    made = offset(relu, 0.5)
    assert {**made.slots} == {**relu.slots, "offset": 0.5}
    assert (made.d_sae, made.recipe, made.seed) == (relu.d_sae, relu.recipe, relu.seed)


def test_jumprelu_fires_above_both() -> None:
    x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(0)) * SIGMA
    slots = {"activation": JumpReLU(LogThreshold(0.1))}
    made = offset(Arm(JumpReLUSAE, D_SAE, Recipe(tokens=1_000, batch_size=100), slots=slots), 0.15)
    sae = made.build(D_IN)
    assert set(sae.slots) == {*JumpReLUSAE.slot_defaults(), "offset"}
    f = sae.latents(x).f
    torch.testing.assert_close(f > 0, x @ sae.W_dec.T > 0.25)
    x_hat, at = sae.decode(f).detach(), torch.tensor(0.25 / SIGMA)
    slope = float((x_hat * x).sum() / x.square().sum())
    tail, density = 1 - float(Normal(0, 1).cdf(at)), float(Normal(0, 1).log_prob(at).exp())
    assert slope == pytest.approx(D_SAE / D_IN * (tail + 0.1 / SIGMA * density), rel=0.1)
