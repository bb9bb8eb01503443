"""dictionary_learning: its trainers' `update`.

A step is `trainer.update(step, x)`: loss, backward, gradient projection and unit decoder columns,
torch.optim.Adam, scheduler; TopK and its kin also clip to norm 1, count dead latents and return
`loss.item()`, and start b_dec at the geometric median of the first batch. JumpReLU has a quadratic
penalty around a target L0 instead of a coefficient to steer. Warm-ups are off; Adam's betas, which
the trainers fix, are set to the recipe's.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from torch import Tensor

from benchmarks.case import Case, Learner

STEPS = 100_000
FIRST = ("bias", "decoder_bias", "b_dec")
"""What the trainers' SAEs call b_dec."""


class OfDictionaryLearning(Learner):
    """A trainer and its SAE; `encode` holds the arguments that give the codes of training."""

    def __init__(self, trainer: Any, encode: Mapping[str, Any]) -> None:
        self.trainer, self.index, self._encode = trainer, 0, encode

    def step(self, x: Tensor) -> None:  # noqa: D102
        self.trainer.update(self.index, x)
        self.index += 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        f = self.trainer.ae.encode(x, **self._encode)
        return f, self.trainer.ae.decode(f)

    def coefficient(self) -> float | None:
        """Of L1."""
        return getattr(self.trainer, "l1_penalty", None)

    def charge(self, coefficient: float) -> None:  # noqa: D102
        self.trainer.l1_penalty = coefficient


@torch.no_grad()
def start(sae: Any, case: Case, first: Tensor) -> None:
    """Our initial weights."""
    W_dec = case.decoder(first.shape[1])
    named = dict(sae.named_parameters())
    for name in ("encoder.weight", "W_dec"):
        if name in named:
            named[name].copy_(W_dec)
    for name in ("decoder.weight", "W_enc"):
        if name in named:
            named[name].copy_(W_dec.T)
    for name in ("encoder.bias", "b_enc"):
        if name in named:
            named[name].zero_()
    for name in FIRST:
        if name in named:
            named[name].copy_(first.mean(0))
    if "threshold" in named:
        named["threshold"].fill_(case.threshold)


def arm(
    trainer: type,
    options: Callable[[Case], dict[str, Any]],
    encode: Mapping[str, Any],
    case: Case,
    first: Tensor,
) -> Learner:
    """Built with our initial weights."""
    built = trainer(
        steps=STEPS,
        activation_dim=first.shape[1],
        dict_size=case.d_sae,
        layer=0,
        lm_name="none",
        lr=case.lr,
        warmup_steps=0,
        device=case.device,
        seed=case.seed,
        **options(case),
    )
    for group in built.optimizer.param_groups:
        group["betas"] = case.betas
    built.dead_feature_threshold = case.dead_after
    start(built.ae, case, first)
    return OfDictionaryLearning(built, encode)


def l1(case: Case) -> dict[str, Any]:
    """Standard and Gated."""
    return {"l1_penalty": case.coefficient, "sparsity_warmup_steps": None}


def k(case: Case) -> dict[str, Any]:
    """TopK and BatchTopK: a step keeps the running threshold, as it does there after 1,000."""
    return {"k": case.l0, "threshold_start_step": 0}


def nested(case: Case) -> dict[str, Any]:
    """Matryoshka; a fraction is nudged up, since the library rounds down."""
    sizes = [end - start for start, end in zip([0, *case.prefixes], case.prefixes, strict=False)]
    inner = [(size + 1e-6) / case.d_sae for size in sizes[:-1]]
    return {**k(case), "group_fractions": [*inner, 1 - sum(inner)]}


def target(case: Case) -> dict[str, Any]:
    """JumpReLU: raw thresholds and a target L0."""
    return {"target_l0": case.l0, "bandwidth": case.bandwidth, "sparsity_warmup_steps": None}


BY_BATCH = {"use_threshold": False}

ARMS: Mapping[str, Callable[[Case, Tensor], Learner]] = {
    "ReLU": partial(arm, StandardTrainer, l1, {}),
    "TopK": partial(arm, TopKTrainer, k, {}),
    "BatchTopK": partial(arm, BatchTopKTrainer, k, BY_BATCH),
    "Matryoshka": partial(arm, MatryoshkaBatchTopKTrainer, nested, BY_BATCH),
    "Gated": partial(arm, GatedSAETrainer, l1, {}),
    "JumpReLU": partial(arm, JumpReluTrainer, target, {}),
}
