import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from architectures import TopKSAE
from architectures.topk import AuxK
from sae_bench.activations import TopK
from sae_bench.errors import InputError
from tests.small import BATCH, D_IN, D_SAE, small_batch, small_sae


def topk(dead: int, **aux: Any) -> TopKSAE:
    """An SAE whose first `dead` latents are dead."""
    sae = small_sae(TopKSAE, aux=AuxK(**{"k": 3, "coefficient": 0.25, "dead_after": 100, **aux}))
    assert isinstance(sae, TopKSAE)
    sae.silent_tokens[:dead] = 100
    sae.silent_tokens[dead:] = 99
    return sae.double()


def slow_aux(sae: TopKSAE, x: Tensor) -> Tensor:
    """The auxiliary loss, one token and one latent at a time."""
    dead = [i for i in range(D_SAE) if sae.silent_tokens[i] >= sae.aux.dead_after]
    total = x.new_zeros(())
    for token, error in zip(x, (x - sae(x)).detach(), strict=True):
        pre = {i: (token - sae.b_dec) @ sae.W_enc[:, i] + sae.b_enc[i] for i in dead}
        e_hat = torch.zeros_like(error)
        for i in sorted(dead, key=lambda i: -pre[i].item())[: sae.aux.k or D_IN // 2]:
            e_hat = e_hat + pre[i].relu() * sae.W_dec[i]
        total = total + (error - e_hat).square().sum() / len(x)
    return sae.aux.coefficient * total


@pytest.mark.parametrize("k", [0, 1, 3, 99])
@pytest.mark.parametrize("dead", [1, 5, D_SAE])
def test_auxk_and_its_gradients_against_a_slow_reference(dead: int, k: int) -> None:
    sae, x = topk(dead, k=k), small_batch().double()
    found, expected = sae.loss(x).terms["auxk"], slow_aux(sae, x)
    torch.testing.assert_close(found, expected)
    parameters = list(sae.parameters())
    for ours, reference in zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference)


def test_the_target_is_detached() -> None:
    """Living latents get no gradient from the term: it only fits dead ones to what is left."""
    sae = topk(5)
    sae.loss(small_batch().double()).terms["auxk"].backward()
    assert sae.W_dec.grad is not None
    assert sae.b_enc.grad is not None
    assert sae.W_dec.grad[:5].any()
    assert not sae.W_dec.grad[5:].any()
    assert not sae.b_enc.grad[5:].any()


def test_the_decoder_bias_is_not_part_of_the_auxiliary_reconstruction() -> None:
    """b_dec is reached only through x - b_dec in the encoder of the dead latents."""
    sae = topk(5)
    sae.loss(small_batch().double()).terms["auxk"].backward()
    assert sae.b_dec.grad is not None
    torch.testing.assert_close(sae.b_dec.grad, -sae.W_enc.detach() @ sae.b_enc.grad)
    assert sae.b_dec.grad.any()


@pytest.mark.parametrize("slots", [{"dead": 0}, {"dead": 5, "coefficient": 0.0}])
def test_without_dead_latents_the_term_is_nothing(slots: dict[str, Any]) -> None:
    sae, x = topk(**slots), small_batch().double()
    loss = sae.loss(x)
    assert loss.terms["auxk"].item() == 0
    loss.total.backward()
    with_term = [parameter.grad.clone() for parameter in sae.parameters()]
    sae.zero_grad()
    sae.loss(x).terms["reconstruction"].backward()
    for found, parameter in zip(with_term, sae.parameters(), strict=True):
        assert found.isfinite().all()
        assert torch.equal(found, parameter.grad)


def test_a_perfect_reconstruction_leaves_finite_gradients() -> None:
    sae, x = topk(D_SAE), small_batch().double()
    sae.loss(sae(x).detach()).total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())


def test_latents_die_of_silence_and_come_back() -> None:
    sae = small_sae(TopKSAE, aux=AuxK(dead_after=2 * BATCH))
    assert isinstance(sae, TopKSAE)
    with torch.no_grad():
        sae.b_enc[0] = -1e3
    x = small_batch()
    terms = []
    for _ in range(3):
        loss = sae.loss(x)
        terms.append(loss.terms["auxk"].item())
        sae.observe(loss.latents)
    assert sae.silent_tokens[0] == 3 * BATCH
    assert terms[:2] == [0.0, 0.0]
    assert terms[2] > 0
    with torch.no_grad():
        sae.b_enc[0] = 1e3
    sae.observe(sae.loss(x).latents)
    assert sae.silent_tokens[0] == 0


@given(st.integers(1, D_SAE), st.integers(0, 100))
def test_at_most_k_latents_are_on(k: int, seed: int) -> None:
    sae = small_sae(TopKSAE, seed, activation=TopK(k))
    f = sae.encode(small_batch(seed))
    assert (f > 0).sum(1).max() <= k
    reference = sae.affine(small_batch(seed), sae.W_enc, sae.b_enc).relu()
    torch.testing.assert_close(f.sum(1), reference.topk(k).values.sum(1))


def test_the_defaults_are_the_papers() -> None:
    sae = TopKSAE(D_IN, 128)
    assert sae.slots["activation"] == TopK(64)
    assert sae.slots["aux"] == AuxK(k=0, coefficient=1 / 32, dead_after=10_000_000)
    assert sae.loss(small_batch()).terms["sparsity"].item() == 0


@pytest.mark.parametrize(
    "values", [{"k": -1}, {"coefficient": -0.1}, {"coefficient": math.nan}, {"dead_after": 0}]
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"AuxK\(.*\): .* are needed"):
        AuxK(**values)
