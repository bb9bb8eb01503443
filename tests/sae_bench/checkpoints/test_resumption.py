"""Training that is stopped goes on to the bits it would have had."""

import os
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import Checkpoints
from sae_bench.contexts import Packed
from sae_bench.sae import SparseAutoencoder
from sae_bench.stream import ActivationStream
from sae_bench.train import Trained, Trainee, train
from tests.corpus import Letters
from tests.grids import SITE
from tests.small import D_IN, D_SAE, RECIPE, small_arms
from tests.stops import ARMS, Killed, Watched, at, often, resumed, same, steps, stopped
from tests.tiny import tiny_model

CPU = torch.device("cpu")


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
