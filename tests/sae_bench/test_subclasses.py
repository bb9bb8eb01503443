"""What subclasses and callers may do, and the line that they get where they may not."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sae_bench.activations import ReLU
from sae_bench.conformance import ARCHITECTURE
from sae_bench.errors import InputError
from sae_bench.sae import SparseAutoencoder
from tests.small import D_IN, D_SAE, small_batch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("8", 16), r"SparseAutoencoder\.d_in: expected an integer, got '8'"),
        ((8.0, 16), r"SparseAutoencoder\.d_in: expected an integer, got 8\.0"),
        ((8, True), r"SparseAutoencoder\.d_sae: expected an integer, got True"),
    ],
)
def test_widths_are_whole_numbers(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        SparseAutoencoder.__init__.__wrapped__(SparseAutoencoder(4, 4), *arguments)


def test_activations_of_another_width_are_refused() -> None:
    sae = SparseAutoencoder(D_IN, D_SAE)
    for shape in ((3, D_IN + 1), (D_IN,), (2, 3, D_IN)):
        with pytest.raises(
            InputError, match=r"takes activations of shape \(batch, 6\), a tensor of floats, got"
        ):
            type(sae).encode.__wrapped__(sae, torch.zeros(shape))


def test_a_bias_that_is_none_is_refused() -> None:
    class Misspelt(SparseAutoencoder):
        biases = ("b_enk", "b_dec")

    with pytest.raises(InputError, match=r"^Misspelt\.biases: there is no tensor 'b_enk'$"):
        Misspelt(D_IN, D_SAE)


@pytest.mark.parametrize("name", ["b_enc", "penalty", "d_in", "silent_tokens", "twice"])
def test_an_activation_takes_no_name_that_is_taken(name: str) -> None:
    @dataclass(frozen=True)
    class Colliding(ReLU):
        def parameters(self, d_sae: int) -> dict[str, torch.Tensor]:
            return {name: torch.zeros(d_sae)}

        def buffers(self, d_sae: int) -> dict[str, torch.Tensor]:
            return {"twice": torch.zeros(d_sae)}

    with pytest.raises(InputError, match=f"^Colliding: the name '{name}' of its tensor is taken"):
        SparseAutoencoder(D_IN, D_SAE, activation=Colliding())


def test_an_encoder_can_be_tied_to_the_decoder() -> None:
    """What is derived is a property and no parameter."""

    class TiedSAE(SparseAutoencoder):
        @property
        def W_enc(self) -> torch.Tensor:  # type: ignore[override]
            return self.W_dec.T

        def initial(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
            tensors = super().initial(generator)
            del tensors["W_enc"]
            return tensors

    sae, x = TiedSAE(D_IN, D_SAE), small_batch()
    assert {name for name, _ in sae.named_parameters()} == {"b_enc", "W_dec", "b_dec"}
    assert list(sae.slots) == ["activation", "penalty", "kernel", "decoder"]
    assert torch.equal(sae.encode(x), (x @ sae.W_dec.T).relu())
    assert ARCHITECTURE.failures(TiedSAE) == {}
