import pytest
import torch
from torch import Tensor

from architectures import BatchTopKSAE, MatryoshkaSAE
from architectures.topk import AuxK
from sae_bench.activations import BatchTopK, JumpReLU, RawThreshold
from sae_bench.arm import Arm
from sae_bench.errors import InputError
from sae_bench.evaluate import evaluate
from sae_bench.penalties import L0
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.synthetic import SyntheticFeatures
from sae_bench.train import train
from tests.small import BATCH, D_IN, D_SAE, small_batch, small_sae

K = 4


def batchtopk(**slots: object) -> BatchTopKSAE:
    sae = small_sae(BatchTopKSAE, **slots).double()
    assert isinstance(sae, BatchTopKSAE)
    return sae


def slow_loss(sae: BatchTopKSAE, x: Tensor) -> dict[str, Tensor]:
    """The loss in training, one token and one latent at a time."""
    pre = [
        [(token - sae.b_dec) @ sae.W_enc[:, i] + sae.b_enc[i] for i in range(D_SAE)] for token in x
    ]
    flat = sorted((pre[a][i].item(), a, i) for a in range(len(x)) for i in range(D_SAE))
    on = {(a, i) for value, a, i in flat[-K * len(x) :] if value > 0}
    dead = [i for i in range(D_SAE) if sae.silent_tokens[i] >= sae.aux.dead_after]
    reconstruction, auxk = x.new_zeros(()), x.new_zeros(())
    for a, token in enumerate(x):
        x_hat = sae.b_dec
        for i in range(D_SAE):
            if (a, i) in on:
                x_hat = x_hat + pre[a][i] * sae.W_dec[i]
        reconstruction = reconstruction + (token - x_hat).square().sum() / len(x)
        e_hat = torch.zeros_like(token)
        for i in sorted(dead, key=lambda i, a=a: -pre[a][i].item())[: sae.aux.k]:
            e_hat = e_hat + pre[a][i].relu() * sae.W_dec[i]
        error = (token - x_hat).detach()
        auxk = auxk + sae.aux.coefficient * (error - e_hat).square().sum() / len(x)
    return {"reconstruction": reconstruction, "auxk": auxk}


def test_the_loss_and_its_gradients_against_a_slow_reference() -> None:
    sae, x = batchtopk(aux=AuxK(k=2, coefficient=0.25, dead_after=100)), small_batch().double()
    sae.silent_tokens[:5] = 100
    loss, expected = sae.loss(x), slow_loss(sae, x)
    assert loss.terms.keys() == {"reconstruction", "sparsity", "auxk"}
    parameters = list(sae.parameters())
    for name, term in expected.items():
        torch.testing.assert_close(loss.terms[name], term)
        for ours, reference in zip(
            torch.autograd.grad(loss.terms[name], parameters, retain_graph=True),
            torch.autograd.grad(term, parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, reference)


def test_the_threshold_follows_training_batches_alone() -> None:
    sae = batchtopk(activation=BatchTopK(K, decay=0.75))
    mean, weight = 0.0, 0.0
    for seed in range(5):
        latents = sae.loss(small_batch(seed).double()).latents
        mean = 0.75 * mean + 0.25 * latents.f[latents.f > 0].min().item()
        weight = 0.75 * weight + 0.25
        sae.observe(latents)
        sae.loss(10 * small_batch(seed).double())
        sae.encode(10 * small_batch(seed).double())
    assert weight == pytest.approx(1 - 0.75**5)
    assert sae.threshold is not None
    assert sae.threshold.shape == (D_SAE,)
    assert sae.threshold.tolist() == [pytest.approx(mean / weight)] * D_SAE
    assert sae.threshold_parameters == []
    assert not sae.needs_samples


def test_evaluation_differs_from_training_as_it_should() -> None:
    """In training the batch decides, in evaluation the fixed threshold does."""
    sae, x = batchtopk(), small_batch().double()
    sae.observe(sae.loss(x).latents)
    quiet = torch.cat([0.01 * x[:1], x[1:]])
    in_training = sae.encode(quiet)
    assert (in_training > 0).sum() == K * BATCH
    sae.eval()
    assert sae.threshold is not None
    pre = sae.affine(quiet, sae.W_enc, sae.b_enc)
    assert torch.equal(sae.encode(quiet), torch.where(pre > sae.threshold, pre, 0.0))
    assert torch.equal(sae.encode(quiet)[1:], sae.encode(x)[1:])
    assert not torch.equal(sae.train().encode(quiet)[1:], sae.encode(x)[1:])


def test_a_token_does_not_depend_on_its_batch_in_evaluation() -> None:
    sae, x = batchtopk(), small_batch().double()
    sae.observe(sae.loss(x).latents)
    alone = torch.cat([sae.encode(row) for row in x.split(1)])
    assert not torch.allclose(alone, sae.encode(x))
    sae.eval()
    alone = torch.cat([sae.encode(row) for row in x.split(1)])
    assert 0 < (alone > 0).sum() < alone.numel()
    torch.testing.assert_close(alone, sae.encode(x))


def test_the_threshold_makes_a_jumprelu_sae_of_it() -> None:
    sae, x = batchtopk(), small_batch().double()
    sae.observe(sae.loss(x).latents)
    assert sae.threshold is not None
    twin = SparseAutoencoder(D_IN, D_SAE, activation=JumpReLU(RawThreshold())).double()
    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    twin.load_state_dict({**twin.state_dict(), **weights, "raw_threshold": sae.threshold})
    assert torch.equal(twin.encode(x), sae.eval().encode(x))


@pytest.mark.parametrize("cls", [BatchTopKSAE, MatryoshkaSAE])
def test_l0_in_evaluation_is_close_to_k_after_training(cls: type[BatchTopKSAE]) -> None:
    cache = SyntheticFeatures(d_in=16, n_features=32, mean_l0=4.0).cache(2000, seed=1)
    recipe = Recipe(
        tokens=250 * 64, batch_size=64, lr=1e-2, betas=(0.9, 0.999), lr_warmup=20, lr_decay=50
    )
    slots = {"aux": AuxK(dead_after=2000)}
    arms = [
        Arm(cls, 64, recipe, slots={**slots, "activation": BatchTopK(K, decay)})
        for decay in (0.999, 0.9)
    ]
    saes = [trained.sae for trained in train(arms, cache, device="cpu")]
    table = evaluate([sae.fold_(cache.scale) for sae in saes if sae], cache.held_out)
    assert table["l0"].tolist() == [pytest.approx(K, rel=0.15), pytest.approx(K, rel=0.08)]
    assert (table["fvu"] < 0.25).all()


def test_a_penalty_on_l0_has_no_meaning() -> None:
    with pytest.raises(InputError, match="BatchTopK fixes L0 by construction"):
        BatchTopKSAE(D_IN, D_SAE, activation=BatchTopK(K), penalty=L0(1.0))
