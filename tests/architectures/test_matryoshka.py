from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from architectures import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE
from architectures.topk import AuxK
from sae_bench.activations import BatchTopK, JumpReLU, RawThreshold
from sae_bench.arm import Arm
from sae_bench.errors import InputError
from sae_bench.kernels import Rectangle
from sae_bench.loading import load_sae
from sae_bench.penalties import L0
from tests.small import D_IN, D_SAE, RECIPE, small_batch, small_sae

PREFIXES = (0.125, 0.5, 1.0)


def matryoshka(prefixes: tuple[float, ...] = PREFIXES, **slots: Any) -> MatryoshkaSAE:
    sae = small_sae(MatryoshkaSAE, prefixes=prefixes, **slots).double()
    assert isinstance(sae, MatryoshkaSAE)
    return sae


@pytest.mark.parametrize("prefixes", [PREFIXES, (1.0,), (1 / 32, 1 / 16, 0.875, 1.0)])
def test_the_loss_and_its_gradients_against_a_slow_reference(prefixes: tuple[float, ...]) -> None:
    """Each prefix decoded on its own, as if the other latents were off."""
    sae = matryoshka(prefixes, aux=AuxK(k=2, coefficient=0.25, dead_after=100))
    sae.silent_tokens[:5] = 100
    x = small_batch().double()
    f = sae.encode(x)
    errors = []
    for share in prefixes:
        masked = f * (torch.arange(D_SAE) < max(1, share * D_SAE))
        errors.append((x - masked @ sae.W_dec - sae.b_dec).square().sum(1).mean())
    if len(prefixes) == 4:
        del errors[0]  # 1/32 and 1/16 of 16 latents are one prefix: it counts once
        assert sae.prefix_sizes == [1, 14, 16]
    plain = small_sae(BatchTopKSAE, aux=sae.aux).double()
    plain.load_state_dict(sae.state_dict())
    auxk = plain.loss(x).terms["auxk"]
    loss = sae.loss(x)
    assert loss.terms.keys() == {"reconstruction", "prefixes", "sparsity", "auxk"}
    assert auxk > 0
    torch.testing.assert_close(loss.terms["auxk"], auxk)
    torch.testing.assert_close(loss.terms["reconstruction"], errors[-1])
    torch.testing.assert_close(loss.terms["prefixes"], torch.stack([*errors, -errors[-1]]).sum())
    torch.testing.assert_close(loss.total, torch.stack([*errors, auxk]).sum())
    parameters = list(sae.parameters())
    without = loss.total - loss.terms["auxk"]
    for ours, reference in zip(
        torch.autograd.grad(without, parameters),
        torch.autograd.grad(torch.stack(errors).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference)


def test_one_prefix_is_batchtopk() -> None:
    sae, x = matryoshka((1.0,)), small_batch().double()
    plain = small_sae(BatchTopKSAE).double()
    torch.testing.assert_close(sae.loss(x).total, plain.loss(x).total)
    assert torch.equal(sae.encode(x), plain.encode(x))


def test_prefixes_do_not_see_later_latents() -> None:
    sae, x = matryoshka(), small_batch().double()
    f = sae.encode(x)
    first, second, full = sae.nested(f)
    with torch.no_grad():
        sae.W_dec[8:] += 1.0
    torch.testing.assert_close(sae.nested(f)[0], first)
    torch.testing.assert_close(sae.nested(f)[1], second)
    assert not torch.allclose(sae.nested(f)[2], full)
    torch.testing.assert_close(sae.decode(f), f @ sae.W_dec + sae.b_dec)


def test_the_first_latents_learn_from_more_prefixes() -> None:
    """d loss / d f_i is a sum over the prefixes that hold latent i; those of later ones alone give
    later latents exactly what the full reconstruction gives."""
    sae, x = matryoshka(), small_batch().double()
    loss = sae.loss(x)
    inner, outer = (
        torch.autograd.grad(loss.terms[name], loss.latents.f, retain_graph=True)[0]
        for name in ("prefixes", "reconstruction")
    )
    assert inner[:, :8].any()
    assert not inner[:, 8:].any()
    assert outer[:, 8:].any()


@pytest.mark.parametrize("cls", [MatryoshkaSAE, BatchTopKSAE, JumpReLUSAE])
def test_curvature_is_half_the_second_derivative_with_respect_to_a_code(cls: type) -> None:
    sae, x = small_sae(cls).double(), small_batch().double()
    f = sae.encode(x).detach()

    def errors(codes: torch.Tensor) -> torch.Tensor:
        nested = sae.nested(codes) if isinstance(sae, MatryoshkaSAE) else [sae.decode(codes)]
        return torch.stack([(x - x_hat).square().sum() for x_hat in nested]).sum()

    for latent in range(D_SAE):
        step = torch.zeros(D_SAE).double()
        step[latent] = 1.0
        second = errors(f + step) - 2 * errors(f) + errors(f - step)
        torch.testing.assert_close(sae.curvature()[latent], second / 2 / len(x))


def test_the_default_prefixes_are_the_papers() -> None:
    shares = MatryoshkaSAE.prefixes
    assert [share * 65_536 for share in shares] == [2048, 6144, 14_336, 30_720, 65_536]
    sae = MatryoshkaSAE(2, 96, activation=BatchTopK(4))
    assert sae.prefix_sizes == [3, 9, 21, 45, 96]
    assert [f.item() for f in sae.curvature() / sae.W_dec.square().sum(1)] == pytest.approx(
        [5.0] * 3 + [4.0] * 6 + [3.0] * 12 + [2.0] * 24 + [1.0] * 51
    )


@given(
    st.lists(st.floats(1e-3, 0.999), max_size=6, unique=True),
    st.integers(1, 300),
    st.integers(0, 3),
)
def test_prefixes_ascend_to_the_whole_dictionary(
    shares: list[float], d_sae: int, seed: int
) -> None:
    sae = MatryoshkaSAE(
        2, d_sae, seed=seed, activation=BatchTopK(1), prefixes=(*sorted(shares), 1.0)
    )
    sizes = sae.prefix_sizes
    assert sizes == sorted(set(sizes))
    assert 1 <= sizes[0] <= sizes[-1] == d_sae
    f = sae.encode(torch.ones(3, 2))
    assert len(sae.nested(f)) == len(sizes)


@pytest.mark.parametrize(
    "prefixes",
    [
        (),
        (0.5,),
        (0.5, 0.25, 1.0),
        (0.5, 0.5, 1.0),
        (0.0, 1.0),
        (-0.5, 1.0),
        (0.5, 1.0, 2.0),
        ("a",),
    ],
)
def test_prefixes_that_do_not_ascend_to_one_are_refused(prefixes: tuple) -> None:
    with pytest.raises(InputError, match="prefixes"):
        MatryoshkaSAE(D_IN, D_SAE, activation=BatchTopK(4), prefixes=prefixes)
    with pytest.raises(InputError, match="prefixes"):
        Arm(MatryoshkaSAE, D_SAE, RECIPE, slots={"prefixes": prefixes})


def test_prefixes_survive_saving(tmp_path: Any) -> None:
    sae = matryoshka()
    sae.save(tmp_path)
    assert load_sae(tmp_path).slots["prefixes"] == PREFIXES


def test_other_activations_and_penalties_nest_as_well() -> None:
    """Thresholds get their gradient from all prefixes."""
    slots = {
        "activation": JumpReLU(RawThreshold(0.2)),
        "penalty": L0(0.1),
        "kernel": Rectangle(0.5),
    }
    sae, single = matryoshka(**slots), matryoshka((1.0,), **slots)
    x = small_batch().double()
    for one in (sae, single):
        one.loss(x).total.backward()
    (nested,), (alone,) = sae.threshold_parameters, single.threshold_parameters
    assert nested.grad is not None
    assert alone.grad is not None
    assert not torch.allclose(nested.grad[:8], alone.grad[:8])
    torch.testing.assert_close(nested.grad[8:], alone.grad[8:])
