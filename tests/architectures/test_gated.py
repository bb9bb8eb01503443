import pytest
import torch
from torch import Tensor

from architectures import GatedSAE
from sae_bench.activations import JumpReLU, TopK
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1, Tanh, TargetL0
from tests.small import D_IN, D_SAE, small_batch, small_sae


def gated() -> tuple[GatedSAE, Tensor]:
    sae = small_sae(GatedSAE, penalty=L1(0.3)).double()
    assert isinstance(sae, GatedSAE)
    return sae, small_batch().double()


def test_the_loss_and_its_gradients_by_plain_torch() -> None:
    """The formulas of arXiv 2404.16014, with the frozen decoder spelt out as copies."""
    sae, x = gated()
    frozen_W, frozen_b = sae.W_dec.detach().clone(), sae.b_dec.detach().clone()
    centred = x - sae.b_dec
    pi = centred @ sae.W_enc + sae.b_gate
    f = (pi > 0) * ((centred @ sae.W_enc) * sae.r_mag.exp() + sae.b_mag).relu()
    terms = {
        "reconstruction": (x - f @ sae.W_dec - sae.b_dec).square().sum(1).mean(),
        "sparsity": 0.5 * 0.3 * pi.relu().sum(1).mean(),
        "auxiliary": (x - pi.relu() @ frozen_W - frozen_b).square().sum(1).mean(),
    }
    loss = sae.loss(x, sparsity_scale=0.5)
    torch.testing.assert_close(loss.latents.f, f)
    torch.testing.assert_close(loss.latents.pre, pi)
    assert loss.terms.keys() == terms.keys()
    parameters = dict(sae.named_parameters())
    for name, term in terms.items():
        torch.testing.assert_close(loss.terms[name], term)
        ours, reference = (
            torch.autograd.grad(
                value, list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for value in (loss.terms[name], term)
        )
        for parameter, found, expected in zip(parameters, ours, reference, strict=True):
            nothing = torch.zeros_like(parameters[parameter])
            torch.testing.assert_close(
                nothing if found is None else found,
                nothing if expected is None else expected,
                msg=f"{name}: {parameter}",
            )


def auxiliary_gradients(sae: GatedSAE, x: Tensor) -> dict[str, Tensor]:
    sae.zero_grad()
    sae.loss(x).terms["auxiliary"].backward()
    return {n: p.grad for n, p in sae.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_auxiliary_decoder_is_frozen_and_the_encoder_is_live() -> None:
    """The auxiliary loss trains the gate alone: nothing reaches W_dec, and b_dec is reached only
    through x - b_dec, whose gradient is minus W_enc times that of the gate's bias."""
    sae, x = gated()
    grads = auxiliary_gradients(sae, x)
    assert grads.keys() == {"W_enc", "b_gate", "b_dec"}
    torch.testing.assert_close(grads["b_dec"], -sae.W_enc.detach() @ grads["b_gate"])


class Thawed(GatedSAE):
    """The trap: the auxiliary decoder is the decoder itself."""

    def decode_gate(self, f: Tensor) -> Tensor:
        return self.decode(f)


def test_an_auxiliary_decoder_that_is_not_frozen_is_noticed() -> None:
    sae, x = small_sae(Thawed).double(), small_batch().double()
    assert isinstance(sae, Thawed)
    grads = auxiliary_gradients(sae, x)
    assert "W_dec" in grads
    assert not torch.allclose(grads["b_dec"], -sae.W_enc.detach() @ grads["b_gate"])


def test_the_gate_selects_and_the_magnitude_path_measures() -> None:
    sae, x = gated()
    with torch.no_grad():
        sae.b_gate.fill_(-1e3)
        assert not sae.encode(x).any()
        sae.b_gate.fill_(1e3)
        sae.b_mag.fill_(2.0)
        sae.r_mag.fill_(-1e3)  # exp -> 0: the magnitude is its bias
        torch.testing.assert_close(sae.encode(x), torch.full((len(x), D_SAE), 2.0).double())


def test_both_paths_start_equal() -> None:
    sae, x = GatedSAE(D_IN, D_SAE), small_batch()
    latents = sae.latents(x)
    torch.testing.assert_close(latents.f, latents.pre.relu())
    assert sae.threshold is None
    assert sae.threshold_parameters == []
    assert {name for name, _ in sae.named_parameters()} == {
        "W_enc", "W_dec", "b_gate", "b_mag", "r_mag", "b_dec",
    }  # fmt: skip


def test_the_penalty_acts_on_the_rectified_gate() -> None:
    for penalty in (L1(0.7), Tanh(0.7, c=2.0)):
        sae = small_sae(GatedSAE, penalty=penalty).double()
        x = small_batch().double()
        loss = sae.loss(x)
        gate, norms = loss.latents.pre.relu(), sae.W_dec.norm(dim=1)
        value = gate if isinstance(penalty, L1) else (2.0 * gate * norms).tanh()
        torch.testing.assert_close(loss.terms["sparsity"], 0.7 * value.sum(1).mean())


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ({"activation": JumpReLU()}, "the activation must stay ReLU"),
        ({"activation": TopK(3)}, "the activation must stay ReLU"),
        ({"penalty": L0(1.0)}, "its gate's step has no pseudo-derivative"),
        (
            {"penalty": TargetL0(1.0), "kernel": BatchKDE(Rectangle(0.1), to_input=True)},
            "its gate's step has no pseudo-derivative",
        ),
    ],
)
def test_combinations_without_meaning_say_why(slots: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        GatedSAE(D_IN, D_SAE, **slots)
