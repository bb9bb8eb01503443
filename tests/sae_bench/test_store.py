"""The folder of a run: what is kept of an arm, and what counts as finished."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from architectures import ReLUSAE
from sae_bench.arm import Arm, grid
from sae_bench.errors import InputError
from sae_bench.penalties import L1
from sae_bench.store import FAILED, MEASURED, TRAINED, RunFolder
from sae_bench.train import Trained
from tests.grids import RECIPE, flipped, state_of

ARMS = grid(ReLUSAE, d_sae=6, penalty=[L1(0.1), L1(0.2)], recipe=RECIPE)
PLACE = {"model": "m", "site": "layers.0.resid_post", "context": None}
INPUTS = {"train": {"id": "a"}, "lm_tokens": 0, "data": None}


def trained(arm: Arm, **changes: Any) -> Trained:
    return Trained(arm, arm.build(4), history=[{"step": 1, "l0": 2.0}], **changes)


def started(path: Path, arms: list[Arm] = ARMS, **changes: Any) -> RunFolder:
    folder, inputs = RunFolder(path), {**INPUTS, **changes}
    folder.specification.write(arms, inputs, {"command": "test"})
    return folder


def row(arm: Arm) -> pd.DataFrame:
    return pd.DataFrame([{"eval_set": "x", "l0": 1.0, "frequency": [0.5] * arm.d_sae}])


def test_a_trained_arm_is_kept_folded(tmp_path: Path) -> None:
    folder, (arm, other) = started(tmp_path), ARMS
    ended = trained(arm)
    with torch.no_grad():
        ended.sae.b_dec.copy_(torch.arange(4.0))
    folder.keep(ended, 3.0, PLACE)
    assert folder.outcome(arm)["status"] == TRAINED  # type: ignore[index]
    assert folder.is_trained(arm)
    assert not folder.is_evaluated(arm)
    assert folder.outcome(other) is None
    assert not folder.is_trained(other)
    sae = folder.sae(arm)
    assert sae.b_dec.tolist() == [0, 3, 6, 9]
    assert state_of(sae) == state_of(ended.sae)
    config = json.loads((tmp_path / "arms" / arm.key / "sae" / "config.json").read_text())
    assert config["provenance"]["activation_scale"] == 3.0
    assert {name: config["provenance"][name] for name in PLACE} == PLACE
    assert folder.sae(arm).provenance == config["provenance"]
    assert config["provenance"]["arm"] == json.loads(json.dumps(arm.record()))


def test_the_table_has_only_the_arms_of_this_run(tmp_path: Path) -> None:
    started(tmp_path, ARMS)
    assert list(started(tmp_path, ARMS[:1]).finish(ARMS[1:], {})["arm"]) == [ARMS[1].key]


def test_an_arm_without_its_outcome_is_not_trained(tmp_path: Path) -> None:
    folder, arm = started(tmp_path), ARMS[0]
    folder.keep(trained(arm), 1.0, PLACE)
    (tmp_path / "arms" / arm.key / "arm.json").unlink()
    assert not folder.is_trained(arm)


def test_a_failed_arm_is_kept_without_an_sae(tmp_path: Path) -> None:
    folder, arm = started(tmp_path), ARMS[0]
    folder.keep(trained(arm, reason="diverged"), 1.0, PLACE)
    assert folder.outcome(arm)["status"] == FAILED  # type: ignore[index]
    assert not folder.is_trained(arm)
    with pytest.raises(InputError):
        folder.sae(arm)


def test_training_again_drops_the_old_measurements(tmp_path: Path) -> None:
    folder, arm = started(tmp_path), ARMS[0]
    folder.keep(trained(arm), 1.0, PLACE)
    folder.keep_evaluation(arm, row(arm))
    assert folder.is_evaluated(arm)
    folder.keep(trained(arm), 1.0, PLACE)
    assert not folder.is_evaluated(arm)


def test_the_table_has_a_row_for_every_arm(tmp_path: Path) -> None:
    folder, (arm, failed) = started(tmp_path), ARMS
    folder.keep(trained(arm, seconds=2.5, path="sparse 1 ms, dense 2 ms"), 1.0, PLACE)
    folder.keep_evaluation(arm, row(arm))
    folder.keep(trained(failed, reason="broke"), 1.0, PLACE)
    table = folder.finish(ARMS, {"model": "m"})
    assert list(table["arm"]) == [arm.key, failed.key]
    assert list(table["status"]) == [TRAINED, FAILED]
    assert list(table["reason"]) == ["", "broke"]
    assert list(table["model"]) == ["m", "m"]
    assert table["l0"].tolist()[0] == 1.0
    assert table["seconds"].tolist()[0] == 2.5
    assert folder.outcome(arm)["path"] == "sparse 1 ms, dense 2 ms"  # type: ignore[index]
    assert set(MEASURED) <= set(table)
    assert "frequency" not in table
    frequencies = pd.read_parquet(tmp_path / "frequencies.parquet")
    assert frequencies["arm"].tolist() == [arm.key]
    assert frequencies["frequency"][0].tolist() == [0.5] * 6
    assert not list(tmp_path.rglob("*.partial"))


# -- damaged files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sae/sae.safetensors", "sae/config.json", "training.parquet"])
def test_an_arm_with_a_damaged_file_is_trained_again(tmp_path: Path, name: str) -> None:
    folder, arm = started(tmp_path), ARMS[0]
    folder.keep(trained(arm), 1.0, PLACE)
    flipped(tmp_path / "arms" / arm.key / name)
    with pytest.warns(UserWarning, match=rf"{name}: missing or damaged; the arm is trained again"):
        assert not folder.is_trained(arm)


def test_an_arm_with_a_damaged_record_is_trained_again(tmp_path: Path) -> None:
    folder, arm = started(tmp_path), ARMS[0]
    folder.keep(trained(arm), 1.0, PLACE)
    flipped(tmp_path / "arms" / arm.key / "arm.json")
    with pytest.warns(UserWarning, match=r"arm\.json: damaged .* starts anew"):
        assert not folder.is_trained(arm)


def test_damaged_metrics_are_measured_again(tmp_path: Path) -> None:
    folder, arm = started(tmp_path), ARMS[0]
    folder.keep(trained(arm), 1.0, PLACE)
    folder.keep_evaluation(arm, row(arm))
    flipped(tmp_path / "arms" / arm.key / "evaluation.parquet")
    with pytest.warns(UserWarning, match=r"evaluation\.parquet: .* the arm is measured again"):
        assert not folder.is_evaluated(arm)
    assert folder.is_trained(arm)


def test_half_written_files_do_not_count(tmp_path: Path) -> None:
    """A stale one beside an arm's files is not among those that must stay as they are."""
    folder, arm = started(tmp_path), ARMS[0]
    stale = tmp_path / "arms" / arm.key / "evaluation.parquet.partial"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    folder.keep(trained(arm), 1.0, PLACE)
    stale.unlink()
    assert folder.is_trained(arm)
