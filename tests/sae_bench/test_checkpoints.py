"""Training that is stopped goes on to the bits it would have had."""

import errno
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import JumpReLUSAE
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import Checkpoints
from sae_bench.contexts import Packed
from sae_bench.errors import InputError
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
from sae_bench.stream import ActivationStream
from sae_bench.train import Trained, Trainee, train
from tests.corpus import Letters
from tests.desk import contents
from tests.grids import SITE
from tests.small import D_IN, D_SAE, JUMP, RECIPE, bits, small_arms, small_cache, small_slots
from tests.tiny import tiny_model

CPU = torch.device("cpu")
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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process here is killed so hard that files need to reach the disk."""
    monkeypatch.setattr("sae_bench.files.os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    return small_cache()


@pytest.fixture(scope="module")
def expected(cache: ActivationCache) -> list[Trained]:
    """What the arms become undisturbed."""
    found = train(ARMS, cache, device="cpu")
    assert [trained.reason is None for trained in found] == [True] * (len(ARMS) - 1) + [False]
    return found


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


# -- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2, 5, 11, 19])
def test_killed_at_any_step(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path, index: int
) -> None:
    ended = stopped(ARMS, cache, tmp_path, index)
    found, starts = resumed(ARMS, cache, tmp_path, ended)
    assert index in starts
    same(found, expected)
    assert not list(tmp_path.iterdir())


def test_killed_again_and_again(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path
) -> None:
    arms, ended = ARMS[:-1], list[Trained]()
    for index in range(1, 20):
        ended += stopped(
            [arm for arm in arms if id(arm) not in {id(each.arm) for each in ended}],
            cache,
            tmp_path,
            index,
        )
    found, starts = resumed(arms, cache, tmp_path, ended)
    assert set(starts) == {0, 19}  # the pass of another data order had not begun
    same(found, expected[:-1])


@pytest.mark.parametrize("memory", [0, 35_000])
def test_waves_go_on(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path, memory: int
) -> None:
    """Some waves have ended, one is under way, others have not begun."""
    fetched = count()

    def fetching(index: int) -> None:
        if next(fetched) == 50:
            raise Killed

    ended: list[Trained] = []
    with pytest.raises(Killed):
        train(
            ARMS,
            Watched(cache, fetching),
            device="cpu",
            memory=memory,
            finished=ended.append,
            checkpoints=often(tmp_path, cache),
        )
    assert 0 < len(ended) < len(ARMS) / 2
    found, starts = resumed(ARMS, cache, tmp_path, ended, memory=memory)
    assert sorted(set(starts)) == [0, 10]
    same(found, expected)


def test_a_stream_goes_on(tmp_path: Path) -> None:
    lm = tiny_model("llama")

    def stream() -> ActivationStream:
        return ActivationStream(lm, SITE, Letters(), context=Packed(24), tokens_in_buffer=256)

    arms = small_arms()[:3]
    ended = stopped(arms, stream(), tmp_path, 13)
    found, starts = resumed(arms, stream(), tmp_path, ended)
    assert starts == [13]
    same(found, train(arms, stream(), device="cpu"))


def test_writing_checkpoints_changes_nothing(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path
) -> None:
    same(train(ARMS, cache, device="cpu", checkpoints=often(tmp_path, cache)), expected)


class TransposedSAE(SparseAutoencoder):
    """An encoder whose memory is laid out by columns."""

    def initial(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        tensors = super().initial(generator)
        return tensors | {"W_enc": tensors["W_enc"].T.contiguous().T}


def test_a_state_is_complete(cache: ActivationCache, tmp_path: Path) -> None:
    """Every tensor after a restoration is the same: values, dtype and layout; none is shared with
    the file, and none of the history or time is lost."""
    for arm in (*ARMS[:-1], Arm(TransposedSAE, D_SAE, RECIPE)):
        trainee, other = Trainee(arm, D_IN, CPU), Trainee(arm, D_IN, CPU)
        for index, x in zip(range(4), cache.batches(32, 0), strict=False):
            trainee.advance(index, x)
        checkpoints = often(tmp_path, cache)
        checkpoints.save([(arm, trainee.state(4))])
        loaded = checkpoints.load(arm, 4)
        content = {name: tensor.clone() for name, tensor in loaded.tensors.items()}
        other.restore(loaded)
        checkpoints.drop(arm)
        theirs, ours = other.state(4), trainee.state(4)
        assert set(theirs.tensors) == set(ours.tensors)
        for name, tensor in ours.tensors.items():
            found = theirs.tensors[name]
            assert found.numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes(), name
            assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride()), name
        assert sum(name.endswith(".step") for name in ours.tensors) >= 4
        assert (theirs.history, theirs.seconds) == (ours.history, ours.seconds)
        assert len(theirs.history) == 4
        other.advance(4, x)
        for name, tensor in content.items():
            assert loaded.tensors[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def test_a_divergence_before_the_checkpoint_is_not_forgotten(cache: ActivationCache) -> None:
    """A loss that was not finite, at a step that was not logged."""
    arm, x = ARMS[0], next(cache.batches(32, 0))
    trainee, other = Trainee(arm, D_IN, CPU), Trainee(arm, D_IN, CPU)
    loss, state = trainee.step(0, x), trainee.state(1)
    state = replace(state, tensors={**state.tensors, "finite": torch.tensor(False)})
    other.restore(state)
    trainee.log(1, x, loss)
    with pytest.raises(FloatingPointError):
        other.log(1, x, loss)


def test_a_checkpoint_of_another_sae_is_refused(cache: ActivationCache, tmp_path: Path) -> None:
    """Only possible where this library's own code has changed."""
    arm, other = ARMS[0], Arm(SparseAutoencoder, 3, RECIPE)
    state = replace(Trainee(arm, D_IN, CPU).state(1), step=3)
    checkpoints = often(tmp_path, cache)
    checkpoints.save([(other, state)])
    (found,), _ = resumed([other], cache, tmp_path)
    assert (found.reason or "").startswith("InputError: its checkpoint lacks such a ")
    again, starts = resumed([other], cache, tmp_path)
    assert starts == [0]
    same(again, train([other], cache, device="cpu"))


# -- damage ---------------------------------------------------------------------------------------


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit of the header": lambda content: flip(content, 300),
    "a flipped bit of the weights": lambda content: flip(content, len(content) // 2),
    "a flipped bit at the end": lambda content: flip(content, len(content) - 1),
    "cut short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "something else": lambda content: b"{}",
}


def damage(files: Iterable[Path], how: str = "empty") -> None:
    for path in files:
        path.write_bytes(DAMAGE[how](path.read_bytes()))


def files_of(arm: Arm, folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{arm.key}-*/*") if path.is_file())


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_older(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path, how: str
) -> None:
    arms = ARMS[:4]
    stopped(arms, cache, tmp_path, 7)
    damage(files_of(arms[1], tmp_path)[1:], how)
    with pytest.warns(UserWarning, match="damaged checkpoint") as caught:
        found, starts = resumed(arms, cache, tmp_path)
    assert len(caught) == 1
    assert f"{arms[1].key} goes on from step 6" in str(caught[0].message)
    assert sorted(starts) == [6, 7]
    same(found, expected[:4])


def test_an_arm_all_of_whose_checkpoints_are_damaged_starts_anew(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path
) -> None:
    arms = ARMS[:4]
    stopped(arms, cache, tmp_path, 7)
    damage(files_of(arms[1], tmp_path))
    with pytest.warns(UserWarning, match=f"damaged checkpoint; {arms[1].key} starts anew"):
        found, starts = resumed(arms, cache, tmp_path)
    assert sorted(starts) == [0, 7]
    same(found, expected[:4])


def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_good_one(
    cache: ActivationCache, tmp_path: Path
) -> None:
    (arm,) = arms = ARMS[:1]
    stopped(arms, cache, tmp_path, 7)
    damage(files_of(arm, tmp_path)[1:])
    with pytest.warns(UserWarning, match="damaged"):
        assert often(tmp_path, cache).newest(arm) == 6
    stopped(arms, cache, tmp_path, 7)  # from step 6
    assert steps(arm, tmp_path) == [6, 7]


# -- files ----------------------------------------------------------------------------------------


def steps(arm: Arm, folder: Path) -> list[int]:
    return [int(path.name[:10]) for path in files_of(arm, folder)]


def test_the_newest_two_are_kept(cache: ActivationCache, tmp_path: Path) -> None:
    arms = ARMS[:2]
    for index in (1, 2, 9):
        stopped(arms, cache, tmp_path, index)
        for arm in arms:
            assert steps(arm, tmp_path) == list(range(max(1, index - 1), index + 1))
    assert len(list(tmp_path.iterdir())) == 2
    state = Trainee(arms[0], D_IN, CPU).state(4)
    often(tmp_path, cache).save([(arms[0], state)])
    assert steps(arms[0], tmp_path) == [4]  # an attempt that started anew outdates later steps


def test_what_a_killed_process_left_is_removed(cache: ActivationCache, tmp_path: Path) -> None:
    (arm,) = arms = ARMS[:1]
    stopped(arms, cache, tmp_path, 3)
    name = files_of(arm, tmp_path)[0]
    for ending in (".new", ".new.partial"):
        name.with_name(f"0000000009-{'0' * 32}.safetensors{ending}").write_bytes(b"half")
    assert often(tmp_path, cache).newest(arm) == 3
    stopped(arms, cache, tmp_path, 4)
    assert steps(arm, tmp_path) == [3, 4]


def test_checkpoints_of_a_pass_appear_together(
    cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two files, the arms still stand at one step and share the rest of the pass."""
    arms, write, writes = ARMS[:4], Checkpoints._stage, count()

    def stage(*arguments: Any) -> Path:
        if next(writes) == 4 * 3 + 2:
            raise Killed
        return write(*arguments)

    monkeypatch.setattr(Checkpoints, "_stage", stage)
    with pytest.raises(Killed):
        train(arms, cache, device="cpu", checkpoints=often(tmp_path, cache))
    assert [often(tmp_path, cache).newest(arm) for arm in arms] == [3] * 4


def test_an_added_arm_does_not_disturb(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path
) -> None:
    stopped(ARMS[1:3], cache, tmp_path, 7)
    found, starts = resumed(ARMS[:4], cache, tmp_path)
    assert sorted(starts) == [0, 7]
    same(found, expected[:4])


def test_a_changed_specification_finds_nothing(cache: ActivationCache, tmp_path: Path) -> None:
    arm = ARMS[0]
    stopped([arm], cache, tmp_path, 3)
    assert often(tmp_path, cache).newest(arm) == 3
    for change in (
        {"recipe": RECIPE.replace(lr=0.02)},
        {"recipe": RECIPE.replace(tokens=21 * 32)},
        {"seed": 1},
        {"d_sae": 17},
    ):
        given = {"recipe": arm.recipe, "seed": arm.seed, "d_sae": arm.d_sae, **change}
        changed: Any = Arm(arm.architecture, slots=arm.slots, **given)
        assert often(tmp_path, cache).newest(changed) == 0
    other = ActivationCache.from_tensor(torch.randn(500, D_IN))
    assert often(tmp_path, other).newest(arm) == 0


def test_nothing_is_left_of_arms_that_ended(cache: ActivationCache, tmp_path: Path) -> None:
    seen: list[int] = []

    def finished(trained: Trained) -> None:
        """They are there until the arm is kept."""
        seen.append(len(files_of(trained.arm, tmp_path)))

    train(ARMS, cache, device="cpu", finished=finished, checkpoints=often(tmp_path, cache))
    assert len(seen) == len(ARMS)
    assert set(seen) == {1, 2}
    assert not list(tmp_path.iterdir())
    checkpoints = often(tmp_path / "run", cache)
    checkpoints.clear(ARMS)
    checkpoints.save([(arm, Trainee(arm, D_IN, CPU).state(1)) for arm in ARMS[:2]])
    checkpoints.clear(ARMS[:1])
    assert [checkpoints.newest(arm) for arm in ARMS[:2]] == [0, 1]  # another run's, to go on from
    checkpoints.clear(ARMS)
    assert not list(tmp_path.iterdir())


# -- a full disk, a slow disk ---------------------------------------------------------------------


def test_a_full_disk_does_not_end_training(
    cache: ActivationCache, expected: list[Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ARMS[:3]

    def fill() -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("sae_bench.files.os.fsync", full)

    kept: list[dict[str, bytes]] = []

    def fetching(index: int) -> None:
        if index == 4:
            fill()
        if index >= 4:
            kept.append(contents(tmp_path))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        source = Watched(cache, fetching)
        found = train(arms, source, device="cpu", checkpoints=often(tmp_path, cache))
    same(found, expected[:3])
    lines = [str(each.message) for each in caught]
    assert len(lines) == 20 - 1 - 4  # one for each checkpoint that failed
    for line in lines:
        assert line.startswith("training goes on without this checkpoint (")
        assert "the disk is full" in line
        assert "\n" not in line
    assert all(each == kept[0] for each in kept)
    assert sorted({Path(name).name[:10] for name in kept[0]}) == ["0000000003", "0000000004"]


def test_a_slow_disk_is_written_to_less_often(
    cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `share` of the time: here 3 s of every 150."""
    now = [0.0]
    monkeypatch.setattr("sae_bench.checkpoints.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, cache.record(), every=10)
    write = checkpoints._stage

    def slow(*arguments: Any) -> Path:
        now[0] += 3
        return write(*arguments)

    monkeypatch.setattr(checkpoints, "_stage", slow)
    moments = []
    for _ in range(400):
        now[0] += 1
        if checkpoints.is_due:
            moments.append(now[0])
            checkpoints.save([(ARMS[0], Trainee(ARMS[0], D_IN, CPU).state(1))])
    assert moments == [10, 160, 310]


@pytest.mark.parametrize("every", [-1.0, float("nan")])
def test_a_wrong_interval(tmp_path: Path, every: float) -> None:
    with pytest.raises(InputError, match="must not be negative"):
        Checkpoints(tmp_path, {}, every=every)


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_is_obeyed_after_the_step_and_its_checkpoint(
    cache: ActivationCache,
    expected: list[Trained],
    tmp_path: Path,
    number: int,
    exception: type[BaseException],
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    ask = at(8, lambda: os.kill(os.getpid(), number))
    arms, checkpoints = ARMS[:4], Checkpoints(tmp_path, cache.record())
    with pytest.raises(exception):
        train(arms, Watched(cache, ask), device="cpu", checkpoints=checkpoints)
    assert [steps(arm, tmp_path) for arm in arms] == [[9]] * 4
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    found, starts = resumed(arms, cache, tmp_path)
    assert starts == [9]
    same(found, expected[:4])


def test_a_signal_before_the_first_step_is_obeyed_at_once(
    cache: ActivationCache, tmp_path: Path
) -> None:
    stopped(ARMS[:2], cache, tmp_path, 5)
    fetched: list[int] = []

    def fetching(index: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        fetched.append(index)

    with pytest.raises(KeyboardInterrupt):
        train(ARMS[:2], Watched(cache, fetching), device="cpu", checkpoints=often(tmp_path, cache))
    assert fetched == []
    assert steps(ARMS[0], tmp_path) == [4, 5]
