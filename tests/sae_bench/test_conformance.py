"""The conformance suite passes every registered architecture and catches each way to be wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.conformance import ARCHITECTURE, check_architecture
from sae_bench.errors import InputError
from sae_bench.sae import SparseAutoencoder
from tests.small import ARCHITECTURES

CASES = [
    pytest.param(check, id=f"{name}-{check_name}")
    for name, cls in ARCHITECTURES.items()
    for check_name, check in ARCHITECTURE.named(cls)
]


@pytest.mark.parametrize("check", CASES)
def test_registered_architectures_conform(check: Any) -> None:
    check()


class SquashedSAE(SparseAutoencoder):
    """Decodes something else than its codes."""

    def loss_terms(self, x: Any, latents: Any, reconstruction: Any, sparsity_scale: float) -> Any:
        terms = super().loss_terms(x, latents, reconstruction, sparsity_scale)
        return terms | {"reconstruction": terms["reconstruction"] * len(x)}


class CountingSAE(SparseAutoencoder):
    """Counts in the loss."""

    def loss_terms(self, *arguments: Any) -> Any:
        self.silent_tokens += 1
        return super().loss_terms(*arguments)


class ForgetfulSAE(SparseAutoencoder):
    """Has a parameter that nothing uses."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return super().initial(generator) | {"unused": torch.zeros(2)}


class RandomSAE(SparseAutoencoder):
    """Draws weights from the global generator."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = super().initial(generator)
        return tensors | {
            "W_dec": torch.nn.functional.normalize(torch.randn(self.d_sae, self.d_in))
        }


class BatchCentredSAE(SparseAutoencoder):
    """Mixes the tokens of a batch."""

    def latents(self, x: Any) -> Any:
        return super().latents(x - x.mean(0))


class UnfoldableSAE(SparseAutoencoder):
    """Has a bias that `biases` does not name."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return super().initial(generator) | {"shift": torch.full((self.d_sae,), 0.3)}

    def latents(self, x: Any) -> Any:
        shift: Any = self.shift
        found = self.affine(x, self.W_enc, self.b_enc + shift)
        return self.activation(found, self._own, self.kernel)


class NarrowSAE(SparseAutoencoder):
    """Makes float32 tensors whatever it is given."""

    def decode(self, f: Any) -> Any:
        return super().decode(f).float()


class StuckSAE(SparseAutoencoder):
    """Climbs."""

    def loss_terms(self, *arguments: Any) -> Any:
        return {name: -term for name, term in super().loss_terms(*arguments).items()}


class HoardingSAE(SparseAutoencoder):
    """Keeps state where no checkpoint finds it."""

    seen = 0

    def observe(self, latents: Any) -> None:
        super().observe(latents)
        self.seen += len(latents.f)

    def loss_terms(self, *arguments: Any) -> Any:
        terms = super().loss_terms(*arguments)
        return terms | {"growing": self.seen * self.b_dec.square().sum()}


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (SquashedSAE, "the_loss_is_a_mean_over_the_batch"),
        (CountingSAE, "the_loss_changes_nothing"),
        (ForgetfulSAE, "every_parameter_gets_a_finite_gradient"),
        (RandomSAE, "weights_come_from_the_seed"),
        (BatchCentredSAE, "a_token_is_encoded_alone"),
        (UnfoldableSAE, "folding_scales_the_codes"),
        (NarrowSAE, "works_in_float64"),
        (StuckSAE, "training_lowers_the_loss"),
        (HoardingSAE, "goes_on_from_a_checkpoint"),
    ],
)
def test_a_wrong_class_fails_the_check_that_names_its_fault(
    cls: type[SparseAutoencoder], check: str
) -> None:
    found = ARCHITECTURE.failures(cls)
    assert check in found, found
    with pytest.raises(AssertionError, match=check):
        check_architecture(cls)


def test_checks_are_named_and_say_what_they_hold() -> None:
    assert len({check.__name__ for check in ARCHITECTURE.checks}) == len(ARCHITECTURE.checks) >= 15
    assert all(check.__doc__ for check in ARCHITECTURE.checks)


def test_only_architectures_are_checked() -> None:
    with pytest.raises(InputError, match="is no subclass"):
        check_architecture(dict)
