"""Where a run stands, from its folder alone."""

from pathlib import Path

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
from sae_bench.train import Trained
from tests.grids import RECIPE

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
    folder.start(ARMS, {"train": DATA}, {})
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


def test_arms_under_way_are_running_while_somebody_is_at_work(folder: RunFolder) -> None:
    with folder.in_use():
        assert list(by_arm(folder)["state"])[3:5] == ["running", "running"]
    assert list(by_arm(folder)["state"])[3:5] == ["stopped", "waiting"]


def test_looking_changes_nothing(folder: RunFolder) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.path.rglob("*"))
    status(folder.path)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in folder.path.rglob("*"))


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
