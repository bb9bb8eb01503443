"""The persistent kernel density estimate: a window over the samples of the last steps."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.errors import InputError
from sae_bench.estimator import Bandwidth, Estimate, Remembering, State, at
from sae_bench.ranks import ranks
from sae_bench.samples import Batch, Present, Samples

FIELDS = ("pre", "projection", "step_slope", "weight")


@dataclass(frozen=True)
class WindowKDE(Remembering):
    """A kernel density estimate over the samples of the last T = `steps` steps.

    What is kept of a sample does not go stale (`Samples`): kernel and coefficient are evaluated
    anew at the present threshold, penalty coefficient and decoder norm. The sum is divided by the
    tokens offered in T steps, not by the samples kept. A latent with more samples in a step than
    `slots` keeps the first ones of the (shuffled) batch, each standing for count / slots tokens.

    Args:
        slots: samples kept for each latent and step.
        guard: how far a threshold may travel in T steps before samples are missed, in bandwidths;
            samples are captured within reach + guard. `coverage` tells how well that did.

    Memory: 16 T slots + 8 T bytes a latent.
    """

    slots: int = 16
    guard: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.slots >= 1 and self.guard >= 0):
            raise InputError(
                f"WindowKDE: slots must be at least 1 and guard not negative, "
                f"got {self.slots} and {self.guard}"
            )

    @property
    def most_samples(self) -> int:
        """The slots."""
        return self.slots

    def init(self, d_sae: int) -> dict[str, Tensor]:
        """Empty slots (weight 0)."""
        rings = {name: torch.zeros(self.steps, self.slots, d_sae) for name in FIELDS}
        return {
            **rings,
            "tokens": torch.zeros(self.steps, dtype=torch.int64),
            "center": torch.full((self.steps, d_sae), torch.nan),
            "half": torch.zeros(self.steps, d_sae),
            "step": torch.zeros((), dtype=torch.int64),
        }

    def reach(self, state: State, bandwidth: Bandwidth | None = None) -> Bandwidth:
        """The kernel's reach and the guard band."""
        return (self.kernel.reach + self.guard) * self.width(bandwidth)

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """The density over all slots, divided by the tokens offered."""
        samples, present, tokens = batch
        place = int(state["step"]) % self.steps
        half = self.reach(state, bandwidth)
        new = {name: value.clone() for name, value in state.items()}
        new["tokens"][place] = tokens
        new["center"][place] = present.theta
        new["half"][place] = half
        new["step"] += 1
        latent, slot, kept = pack(samples, present.theta, half, self.slots)
        for name in FIELDS:
            new[name][place] = 0
            new[name][place, slot, latent] = getattr(kept, name)
        every = torch.arange(len(present.theta), device=latent.device)
        window = Samples(every, *(new[name] for name in FIELDS))
        pull = self.pull(window, present, self.width(bandwidth))
        return pull.sum((0, 1)) / new["tokens"].sum(), new

    def coverage(
        self, state: State, present: Present, bandwidth: Bandwidth | None = None
    ) -> Float[Tensor, " d_sae"]:
        """Share of the present kernel's support that was captured, averaged over the steps kept: 1
        means that no threshold has left its guard band."""
        half = self.kernel.reach * self.width(bandwidth)
        low = torch.maximum(present.theta - half, state["center"] - state["half"])
        high = torch.minimum(present.theta + half, state["center"] + state["half"])
        return ((high - low).clamp(min=0) / (2 * half)).nanmean(0)


def pack(
    samples: Samples, theta: Float[Tensor, " d_sae"], half: Bandwidth, slots: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"], Samples]:
    """The samples within `half` of their threshold, at most `slots` for each latent: of more, the
    first are kept, with weights that make up for the others.

    Returns:
        latent, slot (0 to slots - 1) and the samples themselves.
    """
    distance = (samples.pre - theta[samples.latent]).abs()
    near = (distance <= at(half, samples.latent)).nonzero()[:, 0]
    rank, count = ranks(samples.latent[near], len(theta))
    within = (rank < slots).nonzero()[:, 0]
    kept = near[within]
    chosen = Samples(*(column[kept] for column in samples))
    scale = (count / slots).clamp(min=1)[chosen.latent]
    return chosen.latent, rank[within], chosen._replace(weight=chosen.weight * scale)
