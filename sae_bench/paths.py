"""Which way an arm's next step goes: over all pre-activations, or over the latents that fired."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sae_bench.devices import now
from sae_bench.errors import one_line
from sae_bench.projection import NeedsDense

MOST = 0.2
"""Share of all latents of a batch above which entries cost more than ordinary matrix products (on
the CPU; elsewhere, up to which it is worth finding out)."""

PAUSE = 16
"""Steps until the sparse path is tried again after a step with too many latents."""

TIMED = 9
"""Steps that are timed on each path."""

AGAIN = 2000
"""Dense steps after which paths are timed again, if dense steps were the faster ones: fewer latents
fire later."""

NEVER = -1


class Path:
    """Sparse steps while few latents fire. A step that turns out too dense is done again on
    ordinary tensors, and so are the next PAUSE; all are, once code was met that runs on ordinary
    tensors only.

    Args:
        possible: whether the sparse path exists here.
    """

    survived: ClassVar[tuple[type[Exception], ...]] = (NeedsDense,)
    """What a sparse step may raise for the dense one to be done in its place."""

    def __init__(self, possible: bool) -> None:
        self.wait: Tensor = torch.tensor(0 if possible else NEVER)
        """Dense steps to come, or NEVER."""
        self.reason: str | None = None
        """Why the last step that was tried in vain was not sparse."""

    @property
    def is_sparse(self) -> bool:
        """Whether the next step is to be tried on entries."""
        return int(self.wait) == 0

    @property
    def finding(self) -> str:
        """What the choice rests on, for the arm's record; empty where nothing was measured."""
        return ""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What goes into checkpoints, so that a resumed run goes the same way."""
        return {"path": self.wait}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Takes over what a checkpoint holds of `tensors`; one of another kind of device says
        nothing of this one."""
        if saved.keys() == self.tensors.keys():
            for name, tensor in self.tensors.items():
                tensor.copy_(saved[name])

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the gradients of a step, whichever way it goes."""
        yield

    def close(self, reason: Exception) -> None:
        """A sparse step was tried in vain."""
        passes = isinstance(reason, torch.OutOfMemoryError) or not getattr(reason, "lasting", True)
        self.wait.fill_(PAUSE if passes else NEVER)
        self.reason = one_line(reason)

    def passed(self) -> None:
        """A dense step was done."""
        self.wait.sub_((self.wait > 0).to(self.wait.dtype))


class TimedPath(Path):
    """Dense steps, unless sparse ones are found to be faster: the path of accelerators.

    As soon as few enough latents fire, TIMED steps are done on each path, sparse ones first, each
    of them timed on its own with the device idle before and after; steps that turn out too dense
    do not count. If the median sparse step took less time, the arm goes on as on the CPU; if not,
    AGAIN dense steps follow and then the same anew. All timed steps train like any other. Whatever
    RuntimeError a sparse step raises (such as CUDA's), the dense one is done in its place, and only
    dense ones from then on; a lack of memory passes.

    Which path is the faster on CUDA, at what sizes, is unmeasured: hence the timing.

    Args:
        possible: whether the sparse path exists here.
        clock: seconds, read when the device has done all that it was asked for.
    """

    survived = (NeedsDense, RuntimeError)

    def __init__(self, possible: bool, clock: Callable[[], float]) -> None:
        super().__init__(possible)
        self._clock = clock
        self.seconds = torch.full((2, TIMED), torch.nan, dtype=torch.float64)
        """Of sparse and of dense steps; NaN: not timed yet."""

    @property
    def is_sparse(self) -> bool:
        """Not while dense steps are timed, either."""
        sparse, dense = self._timed
        return super().is_sparse and (sparse < TIMED or dense == TIMED)

    @property
    def is_slower(self) -> bool:
        """Whether sparse steps were timed and found not to be faster."""
        sparse, dense = self.seconds.median(1).values  # NaN unless all are known
        return bool(sparse >= dense)

    @property
    def finding(self) -> str:
        """Both times, or why there are none."""
        if int(self.wait) == NEVER:
            return f"never sparse: {self.reason or 'its recipe or device rules it out'}"
        if self._timed[1] == TIMED:
            sparse, dense = (1e3 * self.seconds.median(1).values).tolist()
            return f"median of {TIMED} steps: sparse {sparse:.3g} ms, dense {dense:.3g} ms"
        return "not timed to the end"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The times, too."""
        return {**super().tensors, "path.seconds": self.seconds}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times it if that is due."""
        sparse, dense = self._timed
        if int(self.wait) != 0 or dense == TIMED:
            yield
            return
        place = (0, sparse) if sparse < TIMED else (1, dense)
        started = self._clock()
        yield
        self.seconds[place] = self._clock() - started
        if self.is_slower:
            self.wait.fill_(AGAIN)

    def passed(self) -> None:
        """The times of slower sparse steps are forgotten when paths are to be timed again."""
        super().passed()
        if int(self.wait) == 0 and self.is_slower:
            self.seconds.fill_(torch.nan)

    @property
    def _timed(self) -> list[int]:
        """How many steps of each kind were timed."""
        return (~self.seconds.isnan()).sum(1).tolist()


def path_on(device: torch.device, possible: bool) -> Path:
    """The path of an arm on `device`; on accelerators other than CUDA, for which torch lacks
    products with sparse matrices, all steps are dense.

    Args:
        possible: whether the arm's recipe allows sparse steps.
    """
    if device.type == "cpu":
        return Path(possible)
    return TimedPath(possible and device.type == "cuda", partial(now, device))
