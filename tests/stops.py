"""Training that is stopped at a batch and goes on from its checkpoints; what its arms become."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from architectures import JumpReLUSAE
from sae_bench.arm import Arm
from sae_bench.checkpoints import Checkpoints
from sae_bench.estimators import (
    ExactJump,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    TargetCount,
    WindowKDE,
)
from sae_bench.kernels import Rectangle
from sae_bench.sae import SparseAutoencoder
from sae_bench.source import ActivationSource
from sae_bench.train import Trained, train
from tests.small import D_SAE, JUMP, RECIPE, bits, small_arms, small_slots

WINDOW = WindowKDE(Rectangle(0.2), steps=3, coefficient=ExactJump())
ESTIMATORS = [
    MomentumKDE(Rectangle(0.2)),
    MeanKDE(Rectangle(0.2), steps=3),
    WINDOW,
    PersistentBandwidth(WINDOW),
    PersistentBandwidth(MomentumKDE(Rectangle(0.2)), TargetCount()),
]
ARMS = [
    *small_arms(),
    *(
        Arm(JumpReLUSAE, D_SAE, RECIPE, slots=small_slots(JumpReLUSAE) | {"kernel": estimator})
        for estimator in ESTIMATORS
    ),
    *(
        Arm(SparseAutoencoder, D_SAE, RECIPE.replace(**change), slots=JUMP)
        for change in (
            {"tokens": 5 * 32},
            {"data_seed": 1},
            {"centre": True},
            {"clip": 0.1},
            {"autocast": True},
            {"lr": 1e30, "tokens": 18 * 32},  # diverges within a few steps
        )
    ),
]


class Killed(BaseException):
    """The end of a process, for all that it can do about it."""


class Watched(ActivationSource):
    """A source that calls `fetching` with the index of each batch before it is given, and notes
    where the passes over it started."""

    def __init__(
        self, source: ActivationSource, fetching: Callable[[int], object] = lambda index: None
    ) -> None:
        self.source, self.fetching = source, fetching
        self.d_in, self.held_out = source.d_in, source.held_out
        self.starts: list[int] = []

    @property
    def scale(self) -> float:
        return self.source.scale

    def record(self) -> dict[str, Any]:
        return self.source.record()

    def batches(self, batch_size: int, seed: int, start: int = 0) -> Iterator[Any]:
        self.starts.append(start)
        for index, x in zip(
            count(start), self.source.batches(batch_size, seed, start), strict=False
        ):
            self.fetching(index)
            yield x


def at(index: int, act: Callable[[], object]) -> Callable[[int], object]:
    """Acts when the batch `index` is fetched."""
    return lambda fetched: act() if fetched == index else None


def kill() -> None:
    raise Killed


def often(folder: Path, source: ActivationSource) -> Checkpoints:
    """A checkpoint after every step."""
    return Checkpoints(folder, source.record(), every=0, share=1)


def stopped(
    arms: Sequence[Arm], source: ActivationSource, folder: Path, index: int, **options: Any
) -> list[Trained]:
    """Trains until the batch `index` is fetched; what had ended by then."""
    ended: list[Trained] = []
    with pytest.raises(Killed):
        train(
            arms,
            Watched(source, at(index, kill)),
            device="cpu",
            finished=ended.append,
            checkpoints=often(folder, source),
            **options,
        )
    return ended


def resumed(
    arms: Sequence[Arm],
    source: ActivationSource,
    folder: Path,
    ended: Iterable[Trained] = (),
    **options: Any,
) -> tuple[list[Trained], list[int]]:
    """Trains on what had not ended well, with whatever is in the folder; all arms, and where the
    passes started."""
    kept = {id(trained.arm): trained for trained in ended if trained.reason is None}
    watched = Watched(source)
    found = train(
        [arm for arm in arms if id(arm) not in kept],
        watched,
        device="cpu",
        checkpoints=often(folder, source),
        **options,
    )
    kept |= {id(trained.arm): trained for trained in found}
    return [kept[id(arm)] for arm in arms], watched.starts


def same(found: Sequence[Trained], expected: Sequence[Trained]) -> None:
    for ours, reference in zip(found, expected, strict=True):
        assert ours.arm is reference.arm
        assert ours.reason == reference.reason, ours.arm.key
        assert [list(row.items()) for row in ours.history] == [
            list(row.items()) for row in reference.history
        ], ours.arm.key
        assert bits(ours) == bits(reference), ours.arm.key


def files_of(arm: Arm, folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{arm.key}-*/*") if path.is_file())


def steps(arm: Arm, folder: Path) -> list[int]:
    return [int(path.name[:10]) for path in files_of(arm, folder)]
