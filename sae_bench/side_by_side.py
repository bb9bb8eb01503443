"""Several estimators measured on the same samples, through the door that training uses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_bench.estimator import Bandwidth, Estimate, Estimator, State
from sae_bench.kernels import Kernel
from sae_bench.samples import Batch


@dataclass(frozen=True)
class SideBySide(Estimator):
    """Several estimators on the same samples, each with its own state.

    Trained with, it is the first of them. Its state also holds what this step gave: `gradient`, one
    row an estimator, and `inside`, samples of the batch within the reach of each one's kernel.
    """

    estimators: tuple[Estimator, ...]

    @property
    def kernel(self) -> Kernel:
        """The first estimator's."""
        return self.estimators[0].kernel

    @property
    def to_input(self) -> bool:
        """The first estimator's."""
        return self.estimators[0].to_input

    def init(self, d_sae: int) -> dict[str, Tensor]:
        """Nothing given yet; each estimator's own start under its number."""
        own = {
            f"{index}_{name}": value
            for index, estimator in enumerate(self.estimators)
            for name, value in estimator.init(d_sae).items()
        }
        given = {name: torch.zeros(len(self.estimators), d_sae) for name in ("gradient", "inside")}
        return given | own

    def reach(self, state: State, bandwidth: Bandwidth | None = None) -> Bandwidth:
        """What the most far-sighted needs."""
        widest = torch.zeros_like(state["gradient"][0])
        for index, estimator in enumerate(self.estimators):
            widest = widest.clamp(min=estimator.reach(_own(state, index), bandwidth))
        return widest

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        """The first one's gradient."""
        samples, present, _ = batch
        distance = (samples.pre - present.theta[samples.latent]).abs()
        gradients, inside = [], []
        following: dict[str, Tensor] = {}
        for index, estimator in enumerate(self.estimators):
            gradient, after = estimator.estimate(_own(state, index), batch, bandwidth)
            seen = distance < estimator.kernel.reach * estimator.kernel.bandwidth
            gradients.append(gradient)
            inside.append(torch.bincount(samples.latent[seen], minlength=len(gradient)))
            following |= {f"{index}_{name}": value for name, value in after.items()}
        given = {"gradient": torch.stack(gradients), "inside": torch.stack(inside)}
        return gradients[0], given | following


def _own(state: State, index: int) -> dict[str, Tensor]:
    prefix = f"{index}_"
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
