"""The persistent kernel density estimate: a window over the samples of the last steps."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.errors import InputError
from sae_bench.estimator import Bandwidth, Estimate, Remembering, State
from sae_bench.ranks import ranks
from sae_bench.samples import Batch, Present, Samples
from sae_bench.support import Thinning

MOST = 8
"""Times its share of the slots that one latent can take."""
DTYPES = {"latent": torch.int32}
"""Of samples that are kept, where it is not float32."""


@dataclass(frozen=True)
class WindowKDE(Remembering):
    """A kernel density estimate over the samples of the last T = `steps` steps.

    What is kept of a sample does not go stale (`Samples`): kernel and coefficient are evaluated
    anew at the present threshold, penalty coefficient and decoder norm. The sum is divided by the
    tokens offered in T steps, not by the samples kept.

    All latents share slots * d_sae places a step. If those do not suffice, each latent keeps at
    most m samples, m the largest number for which they do (at least `slots`, so that rare latents
    keep all of theirs), and never more than 8 slots: the first ones of the (shuffled) batch, each
    standing for count / m tokens. Thinning brings back the noise that memory takes away.

    Args:
        slots: samples kept for each step and latent, on average.
        guard: how far a threshold may travel in T steps before samples are missed, in bandwidths;
            samples are captured within reach + guard. `coverage` tells how well that did.

    Memory: T (20 slots + 8) bytes a latent.
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
    def most_samples(self) -> Thinning:
        """What its places suffice for."""
        return partial(most, slots=self.slots)

    def init(self, d_sae: int) -> dict[str, Tensor]:
        """Empty slots (weight 0): tensors of their own for each step, so that those of other steps
        are handed on as they are."""
        places = self.slots * d_sae
        slots = {
            f"{name}_{step}": torch.zeros(places, dtype=DTYPES.get(name, torch.float32))
            for step in range(self.steps)
            for name in Samples._fields
        }
        return slots | {
            "kept": torch.zeros(self.steps, dtype=torch.int64),
            "tokens": torch.zeros(self.steps, dtype=torch.int64),
            "center": torch.full((self.steps, d_sae), torch.nan),
            "half": torch.zeros(self.steps, d_sae),
            "step": torch.zeros((), dtype=torch.int64),
        }

    def reach(self, state: State, bandwidth: Bandwidth | None = None) -> Bandwidth:
        """The kernel's reach and the guard band."""
        return (self.kernel.reach + self.guard) * self.width(bandwidth)

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """The density over what is kept, divided by the tokens offered."""
        samples, present, tokens = batch
        place = int(state["step"]) % self.steps
        half = self.reach(state, bandwidth)
        kept = shared(samples.within(present.theta, half), len(present.theta), self.slots)
        changed = {name: state[name].clone() for name in ("kept", "tokens", "center", "half")}
        for name, value in zip(changed, (len(kept.pre), tokens, present.theta, half), strict=True):
            changed[name][place] = value
        for name, column in kept._asdict().items():
            changed[f"{name}_{place}"] = slots = torch.zeros_like(state[f"{name}_{place}"])
            slots[: len(column)] = column
        new = {**state, **changed, "step": state["step"] + 1}
        reach = self.kernel.reach * self.width(bandwidth)  # farther ones would have no weight
        near = (each.within(present.theta, reach) for each in self.window(new))
        window = Batch(Samples.joined(near), present, int(new["tokens"].sum()))
        return self.density(window, bandwidth), new

    def window(self, state: State) -> list[Samples]:
        """The samples that are kept, step by step."""
        return [
            Samples(*(state[f"{name}_{step}"][:count] for name in Samples._fields))
            for step, count in enumerate(state["kept"].tolist())
        ]

    def coverage(
        self, state: State, present: Present, bandwidth: Bandwidth | None = None
    ) -> Float[Tensor, " d_sae"]:
        """Share of the present kernel's support that was captured, averaged over the steps kept: 1
        means that no threshold has left its guard band."""
        half = self.kernel.reach * self.width(bandwidth)
        low = torch.maximum(present.theta - half, state["center"] - state["half"])
        high = torch.minimum(present.theta + half, state["center"] + state["half"])
        return ((high - low).clamp(min=0) / (2 * half)).nanmean(0)


def shared(samples: Samples, d_sae: int, slots: int) -> Samples:
    """The first m of each latent, m as large as it can be for slots * d_sae places, with weights
    that make up for the others."""
    rank, count = ranks(samples.latent, d_sae)
    return samples.first(most(count, slots), rank, count)


def most(count: Int[Tensor, " d_sae"], slots: int) -> int:
    """The largest m with sum over latents of min(m, count) <= slots d_sae and m <= 8 slots."""
    fewer = torch.bincount(count).cumsum(0)  # latents with at most 0, 1, 2, ... samples
    taken = (len(count) - fewer).cumsum(0)  # with m = 1, 2, 3, ...
    return min(int((taken <= slots * len(count)).sum()), MOST * slots)
