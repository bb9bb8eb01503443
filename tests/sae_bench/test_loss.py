"""What `loss_terms` must return."""

import inspect
from typing import Any

import pytest

from sae_bench.errors import InputError
from sae_bench.loss import Loss
from sae_bench.sae import SparseAutoencoder, squared_error
from tests.small import D_IN, D_SAE, small_batch

unchecked: Any = inspect.unwrap(Loss.of.__func__)  # type: ignore[attr-defined]
"""Without the type checker of the tests, which would be first to complain."""


class OneTermSAE(SparseAutoencoder):
    def loss_terms(self, x: Any, latents: Any, reconstruction: Any, sparsity_scale: float) -> Any:
        return squared_error(x, reconstruction)


class PerTokenTermSAE(SparseAutoencoder):
    def loss_terms(self, x: Any, latents: Any, reconstruction: Any, sparsity_scale: float) -> Any:
        terms = super().loss_terms(x, latents, reconstruction, sparsity_scale)
        return terms | {"sparsity": latents.f.sum(1)}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (OneTermSAE, "loss_terms must return a dictionary, got a Tensor"),
        (PerTokenTermSAE, r"the loss term 'sparsity' must be a scalar, .* has the shape \(32,\)"),
    ],
)
def test_terms_are_named_scalars(cls: type[SparseAutoencoder], message: str) -> None:
    sae, x = cls(D_IN, D_SAE), small_batch()
    latents = sae.latents(x)
    x_hat = sae.decode(latents.f)
    with pytest.raises(InputError, match=f"^{message}$"):
        unchecked(Loss, sae.loss_terms(x, latents, x_hat, 1.0), latents, x_hat)
