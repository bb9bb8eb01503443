"""The conformance suite for decoder constraints."""

import torch
from torch import Tensor

from sae_bench.decoders import Decoder
from sae_bench.suite import ComponentSuite

DECODER: ComponentSuite[Decoder] = ComponentSuite(Decoder)
D_SAE, D_IN = 24, 8


def _initial(decoder: Decoder, seed: int = 0) -> Tensor:
    return decoder.initial(D_SAE, D_IN, torch.Generator().manual_seed(seed))


def _moved(decoder: Decoder) -> Tensor:
    """Rows after an update that knew nothing of the constraint."""
    W_dec = _initial(decoder)
    return W_dec + 0.3 * torch.randn(W_dec.shape, generator=torch.Generator().manual_seed(1))


@DECODER.first
def starts_with_rows_for_all_latents(decoder: Decoder) -> None:
    """`initial` gives float32 of shape (d_sae, d_in), no row of it zero."""
    W_dec = _initial(decoder)
    assert isinstance(W_dec, Tensor), f"`initial` must return a tensor, got {type(W_dec).__name__}"
    assert W_dec.shape == (D_SAE, D_IN), (
        f"`initial` must return (d_sae, d_in) = {D_SAE, D_IN}, got {tuple(W_dec.shape)}"
    )
    assert W_dec.dtype == torch.float32, f"`initial` must return float32, got {W_dec.dtype}"
    assert W_dec.isfinite().all(), "`initial` must be finite"
    assert (W_dec.norm(dim=1) > 0).all(), "a row of zeros has no direction"


@DECODER
def draws_from_the_generator(decoder: Decoder) -> None:
    """Same seed, same rows; another seed, others; the global generator is not touched."""
    before = torch.get_rng_state()
    one, same, other = (_initial(decoder, seed) for seed in (0, 0, 1))
    advice = "draw from the generator that `initial` is given"
    assert torch.equal(before, torch.get_rng_state()), advice
    assert torch.equal(one, same), advice
    assert not torch.equal(one, other), f"the rows must depend on the seed: {advice}"


@DECODER
def starts_within_its_constraint(decoder: Decoder) -> None:
    """`project_` leaves the initial rows where they are."""
    start = _initial(decoder)
    found = start.clone()
    decoder.project_(found)
    assert torch.allclose(found, start, atol=1e-5), "`project_` moves the initial rows"


@DECODER
def projects_in_place_and_once_for_all(decoder: Decoder) -> None:
    """A second projection changes nothing; directions that are allowed stay finite."""
    once = _moved(decoder)
    decoder.project_(once)
    assert once.isfinite().all(), "`project_` must leave finite rows"
    twice = once.clone()
    decoder.project_(twice)
    assert torch.allclose(once, twice, atol=1e-5), "`project_` applied twice must equal once"


@DECODER
def takes_from_the_gradient_what_it_forbids(decoder: Decoder) -> None:
    """`project_gradient_` changes the gradient alone, once for all, and does not turn it round."""
    W_dec = _moved(decoder)
    decoder.project_(W_dec)
    before = W_dec.clone()
    whole = torch.randn(W_dec.shape, generator=torch.Generator().manual_seed(2))
    once = whole.clone()
    decoder.project_gradient_(W_dec, once)
    assert torch.equal(W_dec, before), "`project_gradient_` must change the gradient, not W_dec"
    twice = once.clone()
    decoder.project_gradient_(W_dec, twice)
    assert torch.allclose(once, twice, atol=1e-5), "`project_gradient_` must be a projection"
    assert (whole * once).sum() > 0, "what `project_gradient_` leaves must still point downhill"
