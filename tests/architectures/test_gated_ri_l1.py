import torch

from architectures import GatedRIL1SAE, GatedSAE
from sae_bench.decoders import FreeRows
from sae_bench.penalties import RIL1
from tests.small import D_IN, D_SAE, small_batch, small_sae


def test_the_loss_and_its_gradients_by_plain_torch() -> None:
    """Gated's formulas with the penalty weighed by row norms and one live decoder."""
    sae, x = small_sae(GatedRIL1SAE, penalty=RIL1(0.3)).double(), small_batch().double()
    assert isinstance(sae, GatedRIL1SAE)
    centred = x - sae.b_dec
    pi = centred @ sae.W_enc + sae.b_gate
    f = (pi > 0) * ((centred @ sae.W_enc) * sae.r_mag.exp() + sae.b_mag).relu()
    norms = sae.W_dec.square().sum(1).sqrt()
    terms = {
        "reconstruction": (x - f @ sae.W_dec - sae.b_dec).square().sum(1).mean(),
        "sparsity": 0.5 * 0.3 * (pi.relu() * norms).sum(1).mean(),
        "auxiliary": (x - pi.relu() @ sae.W_dec - sae.b_dec).square().sum(1).mean(),
    }
    loss = sae.loss(x, sparsity_scale=0.5)
    assert loss.terms.keys() == terms.keys()
    parameters = dict(sae.named_parameters())
    for name, term in terms.items():
        torch.testing.assert_close(loss.terms[name], term)
        ours, reference = (
            torch.autograd.grad(
                value, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            for value in (loss.terms[name], term)
        )
        for parameter, found, expected in zip(parameters, ours, reference, strict=True):
            torch.testing.assert_close(found, expected, msg=f"{name}: {parameter}")


def test_the_auxiliary_loss_trains_the_decoder_unlike_that_of_gated() -> None:
    for cls, trains in ((GatedRIL1SAE, True), (GatedSAE, False)):
        sae = small_sae(cls)
        sae.loss(small_batch()).terms["auxiliary"].backward()
        assert (sae.W_dec.grad is not None and bool(sae.W_dec.grad.any())) is trains


def test_rows_are_free_and_start_small_with_the_encoder_as_their_transpose() -> None:
    sae = GatedRIL1SAE(D_IN, D_SAE)
    assert sae.slots["decoder"] == FreeRows(0.1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((D_SAE,), 0.1))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    with torch.no_grad():
        sae.W_dec.mul_(3)
    sae.project_parameters_()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((D_SAE,), 0.3))


def test_the_loss_does_not_depend_on_how_scale_is_split_between_encoder_and_decoder() -> None:
    """Reparametrisation invariance: gate and codes times c, rows over c."""
    sae, x = small_sae(GatedRIL1SAE).double(), small_batch().double()
    before = sae.loss(x)
    with torch.no_grad():
        for name in ("W_enc", "b_gate", "b_mag"):
            getattr(sae, name).mul_(5.0)
        sae.W_dec.div_(5.0)
    after = sae.loss(x)
    for name, term in before.terms.items():
        torch.testing.assert_close(after.terms[name], term)
    torch.testing.assert_close(after.latents.f, 5.0 * before.latents.f)
