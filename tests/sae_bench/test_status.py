"""Where a run stands, from its folder alone."""

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from architectures import ReLUSAE, TopKSAE
from sae_bench.activations import TopK
from sae_bench.arm import Arm, grid
from sae_bench.checkpoints import State
from sae_bench.cli import main
from sae_bench.errors import InputError
from sae_bench.penalties import L0, L1
from sae_bench.status import STATES, status
from sae_bench.store import RunFolder
from sae_bench.train import Trained, train
from tests.grids import RECIPE, tensor_cache

PLACE = {"model": "m", "site": "s", "context": None}
ARMS = [
    *grid(ReLUSAE, d_sae=6, penalty=[L1(0.1 * n) for n in range(1, 7)], recipe=RECIPE),
    *grid(TopKSAE, d_sae=6, activation=TopK(2), penalty=L0(1.0), recipe=RECIPE),
]
DATA = {"id": "data"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """One arm in each state."""
    folder = RunFolder(tmp_path)
    folder.specification.write(ARMS, {"train": DATA}, {})
    done, measured_not, failed, under_way, _, damaged, _ = ARMS

    def ended(arm: Arm, reason: str | None = None) -> None:
        folder.keep(Trained(arm, arm.build(4), reason), 1.0, PLACE)

    ended(done)
    folder.keep_evaluation(done, pd.DataFrame([{"eval_set": "x", "l0": 1.0}]))
    ended(measured_not)
    ended(failed, "diverged")
    ended(damaged)
    record = tmp_path / "arms" / damaged.key / "arm.json"
    record.write_text(record.read_text().replace("trained", "trainee"))
    folder.checkpoints(DATA, 1.0).save([(under_way, State(7, {"w": torch.ones(2)}, [], 0.5))])
    (tmp_path / "arms" / "relu-of-yesterday").mkdir()
    return folder


def by_arm(folder: RunFolder) -> pd.DataFrame:
    """The rows of ARMS, in their order."""
    return status(folder.path).set_index("arm").loc[[arm.key for arm in ARMS]]


def test_every_arm_has_a_state(folder: RunFolder) -> None:
    table = by_arm(folder)
    states = ["done", "trained", "failed", "stopped", "waiting", "damaged", "skipped"]
    assert list(table["state"]) == states
    assert {*states, "stale", "running"} == set(STATES)
    assert status(folder.path).iloc[-1][["arm", "state"]].tolist() == ["relu-of-yesterday", "stale"]
    assert table["step"].tolist()[:2] == [RECIPE.steps] * 2
    assert table["step"].iloc[3] == 7
    assert (table["steps"] == RECIPE.steps).all()
    assert table["detail"].iloc[2] == "diverged"
    assert "fixes L0" in table["detail"].iloc[6]


def test_arms_that_have_begun_are_running_while_somebody_is_at_work(folder: RunFolder) -> None:
    with folder.in_use():
        assert list(by_arm(folder)["state"])[3:6] == ["running", "waiting", "damaged"]
        folder.checkpoints(DATA, 1.0).begin(ARMS[4:6])
        assert list(by_arm(folder)["state"])[3:6] == ["running", "running", "running"]
    assert list(by_arm(folder)["state"])[3:6] == ["stopped", "waiting", "damaged"]


def test_training_tells_which_arms_have_begun(tmp_path: Path) -> None:
    """The arms of the wave that is trained, until they end, and no others."""
    folder, cache = RunFolder(tmp_path), tensor_cache()
    folder.specification.write(ARMS[:3], {"train": cache.record()}, {})
    seen = []

    def finished(trained: Trained) -> None:
        table = status(folder.path).set_index("arm").loc[[arm.key for arm in ARMS[:3]]]
        seen.append([state == "running" for state in table["state"]])

    with folder.in_use():
        train(
            ARMS[:3],
            cache,
            device="cpu",
            memory=0,  # one arm a wave
            finished=finished,
            checkpoints=folder.checkpoints(cache.record(), 600.0),
        )
    assert seen == [[True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("evaluation.parquet", "measured again"),
        ("training.parquet", "trained again, for nothing less gives this file back"),
        ("sae/sae.safetensors", "trained again"),
        ("sae/config.json", "trained again"),
    ],
)
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), Path.unlink])
def test_damaged_files_are_seen(
    folder: RunFolder, name: str, remedy: str, damage: Callable[[Path], object]
) -> None:
    damage(folder.path / "arms" / ARMS[0].key / name)
    row = by_arm(folder).iloc[0]
    assert row["state"] == "damaged"
    assert f"{name}: missing or damaged; the arm is {remedy}" in row["detail"]


def test_looking_changes_nothing(folder: RunFolder) -> None:
    """Not even for the length of a glance: neither what is there nor who may come in."""
    with folder.in_use():
        pass
    everything = sorted(folder.path.rglob("*"))
    before = [(path, path.stat().st_mtime_ns) for path in everything]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        status(folder.path)
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert before == [(path, path.stat().st_mtime_ns) for path in sorted(folder.path.rglob("*"))]


def test_looking_needs_no_more_than_reading(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder.in_use():
        pass
    opened, original = list[str](), Path.open

    def watched(path: Path, mode: str = "r", **options: Any) -> Any:
        opened.append(mode)
        return original(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", watched)
        assert not folder.is_in_use
    assert opened == ["rb"]


def test_a_run_may_begin_while_somebody_looks(folder: RunFolder) -> None:
    with folder.in_use():
        pass
    with (folder.path / "run.lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with folder.in_use():
            assert folder.is_in_use
    assert not folder.is_in_use


def test_the_command(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(folder.path)]) == 0
    shown = capsys.readouterr().out
    assert all(arm.key in shown for arm in ARMS)
    assert "1 stale: left from another specification" in shown


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"holds no run \(no grid\.json\)"):
        status(tmp_path)
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("sae-bench: error: ")
