"""When the trainer takes the sparse path, and that nothing but time depends on it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import JumpReLUSAE, ReLUSAE
from sae_bench.arm import Arm
from sae_bench.estimators import MeanKDE
from sae_bench.kernels import Rectangle
from sae_bench.paths import AGAIN, NEVER, PAUSE, TIMED, Path, TimedPath, path_on
from sae_bench.penalties import L1
from sae_bench.projection import NeedsDense
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trainee
from tests.either import either
from tests.small import ARCHITECTURES, D_IN, D_SAE, JUMP, RECIPE, small_batch, small_slots

__all__ = ["either"]

CPU = torch.device("cpu")
LONG = RECIPE.replace(tokens=32 * 400, lr=3e-2)


def sparser() -> Arm:
    """An arm whose codes begin dense and end sparse."""
    return Arm(ReLUSAE, D_SAE, LONG, slots={"penalty": L1(0.5)})


def trained(arm: Arm, steps: int, start: Trainee | None = None, first: int = 0) -> list[bool]:
    """Whether each step was sparse."""
    trainee = start or Trainee(arm, D_IN, CPU)
    went = []
    for index in range(first, first + steps):
        loss = trainee.step(index, small_batch(index))
        went.append(type(loss.latents.f) is not Tensor)
    return went


def test_a_path_in_words() -> None:
    path = Path(possible=True)
    assert path.is_sparse
    path.close(NeedsDense("too many", lasting=False))
    for _ in range(PAUSE):
        assert not path.is_sparse
        path.passed()
    assert path.is_sparse
    path.close(NeedsDense("code in the way"))
    for _ in range(2 * PAUSE):
        path.passed()
    assert not path.is_sparse
    assert int(path.wait) == NEVER
    assert not Path(possible=False).is_sparse


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse path is taken however many latents fire."""
    monkeypatch.setattr("sae_bench.train.MOST", 1.0)


def test_it_is_tried_again_until_codes_are_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_bench.train.MOST", 0.3)
    went = trained(sparser(), 200)
    assert not any(went[: PAUSE + 1])
    assert all(went[-50:])
    assert went.index(True) % (PAUSE + 1) == 0


@pytest.mark.usefixtures("eager", "either")
@pytest.mark.parametrize("cls", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_both_paths_train_to_the_same_weights(cls: type[SparseAutoencoder]) -> None:
    """To what round-off in float32 becomes under Adam in 20 steps."""
    arm = Arm(cls, D_SAE, RECIPE, slots=small_slots(cls))
    thin, dense = Trainee(arm, D_IN, CPU), Trainee(arm, D_IN, CPU)
    dense.path = Path(possible=False)
    assert all(trained(arm, 20, thin))
    assert not any(trained(arm, 20, dense))
    for (name, a), b in zip(thin.sae.named_parameters(), dense.sae.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_resumed_arm_goes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint taken during a pause, bit for bit."""
    monkeypatch.setattr("sae_bench.train.MOST", 0.3)
    arm = sparser()
    whole, first, second = (Trainee(arm, D_IN, CPU) for _ in range(3))
    went = trained(arm, 120, whole)
    half = went.index(True) - 5
    before = trained(arm, half, first)
    assert int(first.path.wait) > 0
    second.restore(first.state(half))
    assert before + trained(arm, 120 - half, second, half) == went
    for a, b in zip(whole.sae.state_dict().values(), second.sae.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Sorting(SparseAutoencoder):
    """Its loss looks at all codes of a token."""

    def loss_terms(self, x: Tensor, latents: Any, reconstruction: Tensor, scale: float) -> Any:
        terms = super().loss_terms(x, latents, reconstruction, scale)
        return terms | {"mine": 0.1 * latents.f.sort(-1).values[:, -4:].sum(-1).mean()}


@pytest.mark.usefixtures("eager")
def test_code_that_needs_all_codes_gets_them() -> None:
    arm = Arm(Sorting, D_SAE, RECIPE)
    trainee = Trainee(arm, D_IN, CPU)
    assert trained(arm, 40, trainee) == [False] * 40
    assert int(trainee.path.wait) == NEVER
    assert trainee.path.reason is not None
    assert "sort" in trainee.path.reason


class Nosy(SparseAutoencoder):
    """Its counters look at all codes."""

    def observe(self, latents: Any) -> None:
        super().observe(latents)
        self.provenance["largest"] = float(latents.f.detach().sort(-1).values.max())


@pytest.mark.usefixtures("eager")
def test_counters_that_need_all_codes_get_them_and_count_once() -> None:
    arm = Arm(Nosy, D_SAE, RECIPE)
    trainee = Trainee(arm, D_IN, CPU)
    assert trained(arm, 5, trainee) == [False] * 5
    assert trainee.sae.provenance["largest"] > 0
    assert trainee.sae.silent_tokens.max() <= 5 * 32


class NosyJumps(Nosy, JumpReLUSAE):
    """The same, with an estimator that remembers."""


@pytest.mark.usefixtures("eager")
def test_an_estimator_goes_on_once_a_step_though_counters_refuse() -> None:
    slots = {**small_slots(JumpReLUSAE), "kernel": MeanKDE(Rectangle(0.1))}
    trainee = Trainee(Arm(NosyJumps, D_SAE, RECIPE, slots=slots), D_IN, CPU)
    for index in range(3):
        trainee.step(index, small_batch(index))
        assert int(trainee.sae.estimator_state["step"]) == index + 1
    assert "sort" in str(trainee.path.reason)


class Hoarding(SparseAutoencoder):
    """Keeps what no copy can be made of."""

    def loss_terms(self, x: Tensor, latents: Any, reconstruction: Tensor, scale: float) -> Any:
        self.kept = reconstruction
        return super().loss_terms(x, latents, reconstruction, scale)


@pytest.mark.usefixtures("eager")
def test_an_sae_that_cannot_be_copied_trains_all_the_same() -> None:
    arm = Arm(Hoarding, D_SAE, RECIPE)
    trainee = Trainee(arm, D_IN, CPU)
    assert trained(arm, 5, trainee) == [False] * 5
    assert trainee.path.reason is not None
    assert "copied" in trainee.path.reason


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("changes", [{"autocast": True}, {"clip": 1.0}])
def test_settings_of_the_recipe(changes: dict[str, Any]) -> None:
    """Mixed precision has no sparse path; clipping does not mind."""
    arm = Arm(JumpReLUSAE, D_SAE, RECIPE.replace(**changes), slots=JUMP)
    trainee = Trainee(arm, D_IN, CPU)
    assert any(trained(arm, 20, trainee)) is ("autocast" not in changes)


# -- where both paths are timed -------------------------------------------------------------------


class Clock:
    """Goes on by what a step costs: on entries and on ordinary tensors."""

    def __init__(self, sparse: float, dense: float) -> None:
        self.costs, self.time = (sparse, dense), 0.0

    def __call__(self) -> float:
        return self.time


def timed(arm: Arm, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Trainee:
    """On the CPU, as if it were an accelerator."""
    trainee = Trainee(arm, D_IN, CPU)
    trainee.path = TimedPath(True, clock)
    backward = trainee._backward

    def costly(index: int, x: Tensor) -> Any:
        clock.time += clock.costs[trainee.sae._reach is None]
        return backward(index, x)

    monkeypatch.setattr(trainee, "_backward", costly)
    return trainee


RELU = Arm(ReLUSAE, D_SAE, LONG)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("sparse", "dense"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_the_faster_path_is_taken(
    sparse: float, dense: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainee = timed(RELU, Clock(sparse, dense), monkeypatch)
    trial = [True] * TIMED + [False] * TIMED
    assert trained(RELU, 2 * TIMED, trainee) == trial
    assert trained(RELU, 30, trainee, 2 * TIMED) == [sparse < dense] * 30
    assert trainee.path.finding == (
        f"median of {TIMED} steps: sparse {1e3 * sparse:.3g} ms, dense {1e3 * dense:.3g} ms"
    )


@pytest.mark.usefixtures("eager")
def test_slower_sparse_steps_are_timed_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_bench.paths.AGAIN", 5)
    clock = Clock(2.0, 1.0)
    trainee = timed(RELU, clock, monkeypatch)
    trial = [True] * TIMED + [False] * TIMED
    assert trained(RELU, 2 * TIMED + 4, trainee) == trial + [False] * 4
    clock.costs = (0.5, 1.0)
    assert trained(RELU, 2 * TIMED, trainee, 2 * TIMED + 4) == trial
    assert trained(RELU, 10, trainee, 4 * TIMED + 4) == [True] * 10
    assert AGAIN > 100 * TIMED


def test_only_steps_that_come_to_an_end_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with too many latents are dense, pause, and leave the trial as it was."""
    monkeypatch.setattr("sae_bench.train.MOST", 0.3)
    trainee = timed(sparser(), Clock(1.0, 2.0), monkeypatch)
    path = trainee.path
    assert isinstance(path, TimedPath)
    went = trained(sparser(), 200, trainee)
    assert not any(went[: PAUSE + 1])
    assert path.seconds[0].tolist() == [1.0] * TIMED
    assert path.seconds[1].tolist() == [2.0] * TIMED
    assert all(went[-20:])


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("costs", [(1.0, 2.0), (2.0, 1.0)])
@pytest.mark.parametrize("half", [TIMED // 2, TIMED + 2, 2 * TIMED + 3])
def test_a_resumed_arm_goes_on_with_its_trial(
    half: int, costs: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first, second = (timed(RELU, Clock(*costs), monkeypatch) for _ in range(3))
    went = trained(RELU, 3 * TIMED, whole)
    before = trained(RELU, half, first)
    second.restore(first.state(half))
    assert before + trained(RELU, 3 * TIMED - half, second, half) == went
    assert second.path.finding == whole.path.finding != ""
    for a, b in zip(whole.sae.state_dict().values(), second.sae.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_device_says_nothing_of_this_one() -> None:
    here, there = Path(True), TimedPath(True, Clock(1, 1))
    here.wait.fill_(3)
    there.wait.fill_(AGAIN)
    there.restore(here.tensors)
    here.restore(there.tensors)
    assert (int(here.wait), int(there.wait)) == (3, AGAIN)


class Missing(SparseAutoencoder):
    """As on a device without an operation that only sparse steps need."""

    def decode(self, f: Tensor) -> Tensor:
        if type(f) is not Tensor:
            raise RuntimeError("not implemented here")
        return super().decode(f)


@pytest.mark.usefixtures("eager")
def test_whatever_a_sparse_step_raises_the_dense_one_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arm = Arm(Missing, D_SAE, RECIPE)
    trainee = timed(arm, Clock(1, 1), monkeypatch)
    assert trained(arm, 40, trainee) == [False] * 40
    assert trainee.path.finding == "never sparse: RuntimeError: not implemented here"
    with pytest.raises(RuntimeError, match="not implemented here"):
        trained(arm, 1)


@pytest.mark.usefixtures("eager")
def test_what_was_found_is_said_when_the_arm_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm(ReLUSAE, D_SAE, RECIPE)
    trainee, ours = timed(arm, Clock(1.0, 2.0), monkeypatch), Trainee(arm, D_IN, CPU)
    for index in range(RECIPE.steps):
        ours.advance(index, small_batch(index))
        trainee.advance(index, small_batch(index))
    assert trainee.result.path == trainee.path.finding != ""
    assert ours.result.path == ""


def test_the_device_decides_whether_paths_are_timed() -> None:
    assert type(path_on(CPU, True)) is Path
    assert isinstance(path_on(torch.device("cuda"), True), TimedPath)
    assert path_on(torch.device("cuda"), True).is_sparse
    assert not path_on(torch.device("cuda"), False).is_sparse
    assert not path_on(torch.device("mps"), True).is_sparse
