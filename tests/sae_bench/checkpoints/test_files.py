"""Checkpoints on disk: which are kept, and what becomes of training when they are damaged or cannot
be written."""

import errno
import warnings
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import Checkpoints
from sae_bench.errors import InputError
from sae_bench.train import Trained, Trainee, train
from tests.desk import contents
from tests.small import D_IN, RECIPE
from tests.stops import ARMS, Killed, Watched, files_of, often, resumed, same, steps, stopped

CPU = torch.device("cpu")


# -- files ----------------------------------------------------------------------------------------


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
