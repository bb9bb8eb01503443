"""Runs that were called again, killed or extended, and arms without a result."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from architectures import JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.activations import TopK
from sae_bench.arm import Arm, grid
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import Checkpoints
from sae_bench.components import digest
from sae_bench.contexts import Packed
from sae_bench.penalties import L0
from sae_bench.results import Results
from sae_bench.run import run
from sae_bench.store import MEASURED
from sae_bench.stream import ActivationStream
from sae_bench.train import Trained, Trainee, train
from tests.corpus import Letters
from tests.desk import contents
from tests.grids import RECIPE, SITE, lm_cache, tensor_cache
from tests.runs import ARMS, LLAMA, MODULE, forbidden, start


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return lm_cache(LLAMA, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    start(cache, out)
    return out


def assert_same_run(one: Path, other: Path) -> None:
    """Tables, frequencies and weights are the same bits; only the time taken may differ."""
    tables = (
        pd.read_parquet(out / "table.parquet").drop(columns="seconds") for out in (one, other)
    )
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    left, right = contents(one), contents(other)
    assert set(left) == set(right)
    timed = ("grid.json", "grid.copy.json", "arm.json", "table.parquet", "table.csv")
    for name in left:
        assert name.endswith(timed) or left[name] == right[name], name


# --- called again, killed, extended -------------------------------------------------------------


def test_a_second_call_trains_and_measures_nothing(
    finished: Path, cache: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)
    monkeypatch.setattr(MODULE, "train_arms", forbidden)
    monkeypatch.setattr(MODULE, "evaluate", forbidden)
    monkeypatch.setattr(ActivationCache, "language_model", forbidden)
    start(cache, finished)
    after = contents(finished)
    assert set(after) == set(before)
    assert {name for name in before if before[name] != after[name]} <= {
        "grid.json",
        "grid.copy.json",
    }


def killed_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, interrupted instead of called the `call`-th time (from 1)."""
    calls = iter(range(1, call))

    def killing(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return killing


TARGETS: dict[str, tuple[Any, str]] = {
    "training": (Trainee, "step"),
    "measuring": (import_module("sae_bench.reconstruction").Meter, "add"),
    "splicing": (import_module("sae_bench.splicing"), "_reconstruct"),
    "writing": (os, "fsync"),
}
MOMENTS = [
    ("training", 1),
    ("training", 60),  # the shorter arm has ended
    ("training", 82),
    ("measuring", 4),
    ("splicing", 7),
    *(("writing", call) for call in (1, 2, 3, 4, 5, 6, 20, 38, 40, 46, 48)),
]


@pytest.mark.parametrize(("activity", "call"), MOMENTS)
def test_a_killed_run_resumes_to_the_same_bits(
    finished: Path,
    cache: ActivationCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    activity: str,
    call: int,
) -> None:
    out = tmp_path / "run"
    owner, name = TARGETS[activity]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed_at(call, getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            start(cache, out)
    assert not (out / "table.csv").exists()
    trained = {path.parent.name for path in out.glob("arms/*/arm.json")}
    asked: list[str] = []

    def watched(arms: list[Arm], *arguments: Any, **options: Any) -> list[Trained]:
        asked.extend(arm.key for arm in arms)
        return train(arms, *arguments, **options)

    monkeypatch.setattr(MODULE, "train_arms", watched)
    start(cache, out)
    assert set(asked) == {arm.key for arm in ARMS} - trained
    for leftover in out.rglob("*.partial"):  # of the process that was killed
        leftover.unlink()
    assert_same_run(out, finished)


def steps_taken(cache: ActivationCache, out: Path) -> set[int]:
    """Runs; the steps that any arm took."""
    taken, original = set[int](), Trainee.step

    def step(self: Trainee, index: int, x: Any) -> Any:
        taken.add(index)
        return original(self, index, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "step", step)
        start(cache, out)
    return taken


@pytest.mark.parametrize(
    ("activity", "call", "step"),
    [
        ("training", 3, 0),
        ("training", 60, 6),  # the shorter arm has ended
        ("training", 82, 9),
        ("writing", 15, 1),  # the second checkpoint of the sixth of nine arms
        ("writing", 36, 3),
    ],
)
def test_a_run_with_checkpoints_resumes_within_the_pass(
    finished: Path,
    cache: ActivationCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    activity: str,
    call: int,
    step: int,
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(Checkpoints, "is_due", True)
    owner, name = TARGETS[activity]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed_at(call, getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            start(cache, out)
    assert steps_taken(cache, out) == set(range(step, 10))
    assert_same_run(out, finished)


def end_in_training(out: Path, number: int) -> None:
    """A run that gets a signal in the middle of its seventh step; a checkpoint is due after every
    second step."""
    original, calls = Trainee.step, count(1)
    Checkpoints.is_due = property(lambda self: Trainee.now % 2 == 1)  # type: ignore

    def step(self: Trainee, index: int, x: Any) -> Any:
        Trainee.now = index  # type: ignore[attr-defined]
        if next(calls) == 60:
            signal.raise_signal(number)
        return original(self, index, x)

    Trainee.step = step  # type: ignore[method-assign]
    start(tensor_cache(), out)


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [(signal.SIGKILL, -9, 6), (signal.SIGTERM, 143, 7), (signal.SIGINT, -2, 7)],
)
def test_a_process_that_was_ended(tmp_path: Path, number: int, code: int, step: int) -> None:
    out = tmp_path / "run"
    script = (
        f"from pathlib import Path; from {__name__} import end_in_training as end; "
        f"end(Path({str(out)!r}), {int(number)})"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert steps_taken(tensor_cache(), out) == set(range(step, 10))
    start(tensor_cache(), tmp_path / "undisturbed")
    assert_same_run(out, tmp_path / "undisturbed")


def test_a_run_without_disturbance_leaves_no_checkpoints(
    finished: Path, cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "is_due", True)
    (out := tmp_path / "run").mkdir()
    start(cache, out)
    assert not (out / "checkpoints").exists()
    assert_same_run(out, finished)
    name = f"{ARMS[0].key}-{digest(cache.record())}"
    (leftover := out / "checkpoints" / name).mkdir(parents=True)
    (leftover / "file").write_text("of a process that was killed after the last arm was kept")
    start(cache, out)
    assert not (out / "checkpoints").exists()


def test_an_extended_grid_trains_only_what_is_new(
    finished: Path, cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    start(cache, out, ARMS[::2])
    asked: list[Arm] = []

    def watched(arms: list[Arm], *arguments: Any, **options: Any) -> list[Trained]:
        asked.extend(arms)
        return train(arms, *arguments, **options)

    monkeypatch.setattr(MODULE, "train_arms", watched)
    start(cache, out)
    assert [arm.key for arm in asked] == [arm.key for arm in ARMS[1::2]]
    assert_same_run(out, finished)


def test_a_stream_is_not_read_for_a_finished_run(
    cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream() -> ActivationStream:
        context, held_out = Packed(24), cache.held_out
        return ActivationStream(
            LLAMA, SITE, Letters(), context=context, tokens_in_buffer=256, held_out=held_out
        )

    table = run(ARMS[:2], stream(), out=tmp_path, device="cpu", lm_tokens=0)
    monkeypatch.setattr(ActivationStream, "_buffer", forbidden)
    again = run(ARMS[:2], stream(), out=tmp_path, device="cpu", lm_tokens=0)
    pd.testing.assert_frame_equal(again, table, check_exact=True)


# --- arms without a result ----------------------------------------------------------------------


class Raises(Exception):
    """What a faulty architecture raises."""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Arm:
    """An arm whose third step raises, until the patch is undone."""
    (arm,) = grid(ReLUSAE, d_sae=17, recipe=RECIPE)
    original = Trainee.step

    def step(self: Trainee, index: int, x: Any) -> Any:
        if self.arm is arm and index == 2:
            raise Raises("two\nlines")
        return original(self, index, x)

    monkeypatch.setattr(Trainee, "step", step)
    return arm


def test_failed_and_skipped_arms_have_rows(
    cache: ActivationCache, tmp_path: Path, faulty: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (diverging,) = grid(JumpReLUSAE, d_sae=16, recipe=RECIPE.replace(lr=1e30))
    (skipped,) = grid(TopKSAE, d_sae=16, activation=TopK(2), penalty=L0(1e-3), recipe=RECIPE)
    arms = [ARMS[0], faulty, skipped, diverging, ARMS[3]]
    out = tmp_path / "run"
    table = start(cache, out, arms)
    assert list(table["status"]) == ["trained", "failed", "skipped", "failed", "trained"]
    reasons = list(table["reason"])
    assert reasons[0] == reasons[4] == ""
    assert reasons[1] == "Raises: two lines"
    assert "L0" in reasons[2]
    assert reasons[3].startswith("diverged")
    assert list(table["fvu"].notna()) == [True, False, False, False, True]
    assert not (out / "arms" / skipped.key).exists()
    assert not (out / "arms" / faulty.key / "sae").exists()

    monkeypatch.undo()  # the fault is mended: the arm is trained again, the others are not
    before = contents(out / "arms" / ARMS[0].key)
    again = start(cache, out, arms)
    assert list(again["status"]) == ["trained", "trained", "skipped", "failed", "trained"]
    assert np.isfinite(again["fvu"][1])
    assert again["fvu"][0] == table["fvu"][0]
    assert contents(out / "arms" / ARMS[0].key) == before


def test_a_failing_arm_does_not_touch_the_others(
    finished: Path, cache: ActivationCache, tmp_path: Path, faulty: Arm
) -> None:
    table = start(cache, tmp_path / "run", [*ARMS, faulty])
    undisturbed = pd.read_parquet(finished / "table.parquet")
    for name in ("l0", "fvu", "delta_lm_loss"):
        assert list(table[name][: len(ARMS)]) == list(undisturbed[name])


def test_no_arm_succeeds(cache: ActivationCache, tmp_path: Path, faulty: Arm) -> None:
    table = start(cache, tmp_path / "run", [faulty])
    assert set(MEASURED) <= set(table)
    assert list(table["status"]) == ["failed"]
    results = Results.read(tmp_path / "run")
    assert len(results.frequencies) == 0
    assert list(results.frequencies) == ["arm", "eval_set", "frequency"]
