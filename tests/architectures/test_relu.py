import torch

from architectures import ReLUSAE
from tests.small import BATCH, D_SAE, small_batch, small_sae


def test_the_loss_and_its_gradients_by_plain_torch() -> None:
    """||x - x_hat||^2 + lambda sum ReLU(pre), written with torch's own ReLU."""
    sae, x = small_sae(ReLUSAE).double(), small_batch().double()
    loss = sae.loss(x, sparsity_scale=0.5)
    f = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    error = (x - f @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    total = error + 0.5 * sae.penalty.coefficient * f.sum(1).mean()
    torch.testing.assert_close(loss.total, total)
    parameters = list(sae.parameters())
    ours = torch.autograd.grad(loss.total, parameters)
    reference = torch.autograd.grad(total, parameters)
    for found, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(found, expected)


def test_it_has_no_threshold_and_two_terms() -> None:
    sae = small_sae(ReLUSAE)
    assert sae.threshold is None
    assert sae.threshold_parameters == []
    loss = sae.loss(small_batch())
    assert list(loss.terms) == ["reconstruction", "sparsity"]
    assert loss.latents.f.shape == (BATCH, D_SAE)
