"""What a run was asked for: which grids may share a folder."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from architectures import ReLUSAE
from sae_bench.arm import Arm, grid
from sae_bench.errors import InputError
from sae_bench.modules import load_file
from sae_bench.penalties import L1
from sae_bench.specification import Specification
from tests.grids import RECIPE, flipped

ARMS = grid(ReLUSAE, d_sae=6, penalty=[L1(0.1), L1(0.2)], recipe=RECIPE)
INPUTS = {"train": {"id": "a"}, "lm_tokens": 0, "data": None}


def started(path: Path, arms: list[Arm] = ARMS, **changes: Any) -> Specification:
    found, inputs = Specification(path), {**INPUTS, **changes}
    found.check(arms, inputs)
    found.write(arms, inputs, {"command": "test"})
    return found


def test_checking_writes_nothing(tmp_path: Path) -> None:
    Specification(tmp_path / "a" / "b").check(ARMS, INPUTS)
    assert not list(tmp_path.iterdir())


def test_what_is_known_must_agree(tmp_path: Path) -> None:
    started(tmp_path / "run")
    for known in ({}, {"train": {"id": "a"}}, {"data": {"asked": 1}}, {"train": None}):
        Specification(tmp_path / "run").check(ARMS, known)
    for other in ({"train": {"id": "b"}}, {"lm_tokens": 1}):
        with pytest.raises(InputError, match="holds another grid"):
            Specification(tmp_path / "run").check(ARMS, other)


def test_a_description_of_the_data_must_agree(tmp_path: Path) -> None:
    started(tmp_path / "run", data=L1(0.5))  # any component
    Specification(tmp_path / "run").check(ARMS, {"data": L1(0.5)})
    with pytest.raises(InputError, match=r"'data' differs: data.coefficient is 0.5 there and 0.6"):
        Specification(tmp_path / "run").check(ARMS, {"data": L1(0.6)})


def test_arms_may_be_added_and_left_out(tmp_path: Path) -> None:
    started(tmp_path / "run", ARMS[:1])
    started(tmp_path / "run", ARMS)
    held = started(tmp_path / "run", ARMS[:1]).read()
    assert held
    assert held["arms"] == {arm.key: arm.record() for arm in ARMS}


def test_arms_of_edited_code_are_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    code = (
        "from architectures import ReLUSAE\n"
        "class EditedSAE(ReLUSAE):\n"
        "    def decode(self, f):\n"
        "        return {factor} * super().decode(f)\n"
    )
    arms = []
    for factor in (1, 2):
        (tmp_path / "edited.py").write_text(code.format(factor=factor))
        arms.append(Arm(load_file(tmp_path / "edited.py").EditedSAE, 8, RECIPE))
        started(tmp_path / "run", [arms[-1], ARMS[0]])
        started(tmp_path / "run", [arms[-1], ARMS[0]])
    (warning,) = recwarn
    assert str(warning.message).startswith(
        f"{arms[1].key}: the code of its classes has changed since {arms[0].key} was trained"
    )
    with pytest.raises(InputError, match=f"{arms[0].key}: its EditedSAE was defined again"):
        started(tmp_path / "other", arms)


def test_names_that_clash_are_found_before_training(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Twin(L1):
        pass

    Twin.__name__ = "L1"
    arms = [*ARMS, Arm(ReLUSAE, 4, RECIPE, slots={"penalty": Twin(0.5)})]
    with pytest.raises(
        InputError, match=f"{arms[-1].key}: 'L1' is defined twice, in .*specification"
    ):
        started(tmp_path / "run", arms)
    assert not list(tmp_path.iterdir())
    Twin.__name__ = "Twin"
    started(tmp_path / "run", arms)


def test_half_written_files_are_not_content(tmp_path: Path) -> None:
    (tmp_path / "grid.json.partial").write_text("{")
    assert started(tmp_path).folder == tmp_path
    assert json.loads((tmp_path / "grid.json").read_text())["inputs"] == INPUTS


def test_a_full_disk_while_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sae_bench.files.os.fsync", full)
    with pytest.raises(InputError, match=r"grid\.json: the disk is full"):
        started(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_disk_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("sae_bench.files.os.fsync", broken)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
        started(tmp_path / "run")


def test_the_copy_stands_in_for_a_damaged_specification(tmp_path: Path) -> None:
    found = started(tmp_path)
    flipped(tmp_path / "grid.json")
    found.check(ARMS, INPUTS)
    with pytest.raises(InputError, match="holds another grid"):
        found.check(ARMS, {"lm_tokens": 1})
    flipped(tmp_path / "grid.copy.json")
    with pytest.raises(InputError, match=r"grid\.copy\.json: damaged"):
        found.check(ARMS, INPUTS)
