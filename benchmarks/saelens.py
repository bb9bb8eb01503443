"""SAELens: its training classes in the hands of its `SAETrainer`, as `fit` drives it.

A step is what the loop of `SAETrainer.fit` does for a batch without logging and progress bar:
`maybe_reset_sparsity`, `step` (forward, losses, firing counters, backward, clipping to norm 1,
torch.optim.Adam, learning-rate and coefficient schedulers) and the step counter. Decoder rows are
free there (L1 is weighted by their norms, TopK selects by norm-weighted codes), so a step has no
projection. Activations are normalised already: normalize_activations="none".
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes import (
    batchtopk_sae,
    gated_sae,
    jumprelu_sae,
    matryoshka_batchtopk_sae,
    standard_sae,
    topk_sae,
)
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.case import Case, Learner

STEPS = 100_000


class OfSAELens(Learner):
    """A training SAE and its trainer."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._penalty = next(iter(trainer.coefficient_schedulers.values()), None)

    def step(self, x: Tensor) -> None:  # noqa: D102
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        f, _ = self.trainer.sae.encode_with_hidden_pre(x)
        return f, self.trainer.sae.decode(f)

    def coefficient(self) -> float | None:  # noqa: D102
        return None if self._penalty is None else self._penalty.value

    def charge(self, coefficient: float) -> None:  # noqa: D102
        assert self._penalty is not None
        self._penalty.final_value = self._penalty.current_value = coefficient


def no_batches() -> Iterator[Tensor]:
    """The trainer wants a source; steps are given theirs."""
    yield from ()


def arm(
    sae: type, config: type, options: Callable[[Case], dict[str, Any]], case: Case, first: Tensor
) -> Learner:
    """Built with our initial weights."""
    d_in = first.shape[1]
    built = sae(
        config(
            d_in=d_in, d_sae=case.d_sae, device=case.device, decoder_init_norm=1.0, **options(case)
        )
    )
    W_dec = case.decoder(d_in)
    with torch.no_grad():
        built.W_dec.copy_(W_dec)
        built.W_enc.copy_(W_dec.T)
        built.b_dec.copy_(first.mean(0))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=STEPS * case.batch,
            train_batch_size_samples=case.batch,
            lr=case.lr,
            lr_end=case.lr,
            adam_beta1=case.betas[0],
            adam_beta2=case.betas[1],
            device=case.device,
            dead_feature_window=case.dead_after // min(case.batch, case.warm_batch),
        ),
        built,
        no_batches(),
    )
    return OfSAELens(trainer)


def l1(case: Case) -> dict[str, Any]:
    """Standard and Gated."""
    return {"l1_coefficient": case.coefficient}


def k(case: Case) -> dict[str, Any]:
    """TopK and BatchTopK."""
    return {"k": case.l0}


def nested(case: Case) -> dict[str, Any]:
    """Matryoshka."""
    return {"k": case.l0, "matryoshka_widths": case.prefixes}


def l0(case: Case) -> dict[str, Any]:
    """JumpReLU: raw thresholds."""
    return {
        "l0_coefficient": case.coefficient,
        "jumprelu_init_threshold": case.threshold,
        "jumprelu_bandwidth": case.bandwidth,
    }


ARMS: Mapping[str, Callable[[Case, Tensor], Learner]] = {
    "ReLU": partial(
        arm, standard_sae.StandardTrainingSAE, standard_sae.StandardTrainingSAEConfig, l1
    ),
    "TopK": partial(arm, topk_sae.TopKTrainingSAE, topk_sae.TopKTrainingSAEConfig, k),
    "BatchTopK": partial(
        arm, batchtopk_sae.BatchTopKTrainingSAE, batchtopk_sae.BatchTopKTrainingSAEConfig, k
    ),
    "Matryoshka": partial(
        arm,
        matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE,
        matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig,
        nested,
    ),
    "Gated": partial(arm, gated_sae.GatedTrainingSAE, gated_sae.GatedTrainingSAEConfig, l1),
    "JumpReLU": partial(
        arm, jumprelu_sae.JumpReLUTrainingSAE, jumprelu_sae.JumpReLUTrainingSAEConfig, l0
    ),
}
