"""Which way an arm's next step goes: over all pre-activations, or over the latents that fired."""

import torch
from torch import Tensor

from sae_bench.projection import NeedsDense

MOST = 0.2
"""Share of all latents of a batch above which entries cost more than ordinary matrix products."""

PAUSE = 16
"""Steps until the sparse path is tried again after a step with too many latents."""

NEVER = -1


class Path:
    """Sparse steps while few latents fire. A step that turns out too dense is done again on
    ordinary tensors, and so are the next PAUSE; all are, once code was met that runs on ordinary
    tensors only.

    Args:
        possible: whether the sparse path exists here.
    """

    def __init__(self, possible: bool) -> None:
        self.wait: Tensor = torch.tensor(0 if possible else NEVER)
        """Dense steps to come, or NEVER; in checkpoints, so that a resumed run goes the same way"""
        self.reason: str | None = None
        """Why the last step that was tried in vain was not sparse."""

    @property
    def is_sparse(self) -> bool:
        """Whether the next step is to be tried on entries."""
        return int(self.wait) == 0

    def close(self, reason: NeedsDense) -> None:
        """A sparse step was tried in vain."""
        self.wait.fill_(NEVER if reason.lasting else PAUSE)
        self.reason = str(reason)

    def passed(self) -> None:
        """A dense step was done."""
        self.wait.sub_((self.wait > 0).to(self.wait.dtype))
