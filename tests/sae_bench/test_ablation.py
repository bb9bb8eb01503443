"""Ablations found by name and by path."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from sae_bench import ablation
from sae_bench.ablation import Data
from sae_bench.components import from_record
from sae_bench.errors import InputError
from sae_bench.results import Results
from sae_bench.store import MEASURED
from tests.desk import ABLATION


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "letters.py"
    path.write_text(ABLATION)
    return path


def refusal(spec: str) -> str:
    with pytest.raises(InputError) as caught:
        ablation.load(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_built_in_ones_are_complete() -> None:
    assert "quickstart" in ablation.names()
    untrained = set()
    for name in ablation.names():
        loaded = ablation.load(name)
        assert loaded.name == name
        assert loaded.question.split("\n")[0].endswith("?")
        for preset in loaded.presets.values():
            arms = loaded.arms(preset)
            untrained |= set() if arms else {name}
            assert len({arm.key for arm in arms}) == len(arms)
            assert from_record(type(preset), json.loads(json.dumps(preset.record()))) == preset
    assert untrained == {"released"}


def test_a_file_of_one_s_own(file: Path) -> None:
    loaded = ablation.load(str(file))
    assert loaded.name == "letters"
    assert loaded.question.startswith("Is ReLU or TopK better on letters?")
    assert list(loaded.presets) == ["small", "greedy"]
    assert loaded.preset(None) is loaded.presets["small"]
    assert loaded.preset("greedy") is loaded.presets["greedy"]
    arms = loaded.arms(loaded.preset(None))
    assert [arm.objection is None for arm in arms] == [True] * 4 + [False]
    assert "0.250" in loaded.answer(Results(pd.DataFrame({"fvu": [0.5, 0.25]}), pd.DataFrame()))


def test_a_file_s_name_hides_no_module(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(ABLATION)
    assert ablation.load(str(path)).name == "json"
    assert sys.modules["json"] is json


def test_a_file_may_define_components(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        ABLATION
        + "\nfrom dataclasses import dataclass\n"
        + "@dataclass(frozen=True)\nclass MinePreset(Preset):\n    extra: tuple[int, ...] = (1,)\n"
        + "PRESETS = {'mine': MinePreset(DATA, 16, RECIPE)}\n"
    )
    preset = ablation.load(str(path)).preset(None)
    assert preset.record()["class"] == "MinePreset"
    assert preset.replace(d_sae=4).d_sae == 4


def test_what_is_refused(tmp_path: Path, file: Path) -> None:
    assert "known: " in refusal("no-such")
    assert "quickstart" in refusal("no-such")
    assert "no such file" in refusal(str(tmp_path / "none.py"))
    for name in ("PRESETS", "arms", "figures", "answer"):
        file.write_text(ABLATION.replace(f"def {name}(", "def other(").replace(f"{name} =", "o ="))
        assert f"{name} is missing" in refusal(str(file))
    file.write_text(ABLATION + "\nPRESETS = {}\n")
    assert "PRESETS is empty" in refusal(str(file))
    file.write_text(ABLATION)
    with pytest.raises(InputError, match=r"unknown preset 'big'; it has small, greedy"):
        ablation.load(str(file)).preset("big")


def test_results_are_read_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tables of a finished run") as caught:
        Results.read(tmp_path)
    assert "\n" not in str(caught.value)
    columns = ["arm", "series", "setting", "status", *MEASURED]
    table = pd.DataFrame([dict.fromkeys(columns, "a")])
    frequencies = pd.DataFrame({"arm": ["a"], "eval_set": ["x"], "frequency": [[0.5]]})
    table.to_parquet(tmp_path / "table.parquet")
    (tmp_path / "frequencies.parquet").write_bytes(b"broken")
    with pytest.raises(InputError, match="no tables of a finished run") as caught:
        Results.read(tmp_path)
    assert "\n" not in str(caught.value)
    frequencies.to_parquet(tmp_path / "frequencies.parquet")
    results = Results.read(tmp_path)
    pd.testing.assert_frame_equal(results.table, table)
    assert list(results.frequencies["frequency"][0]) == [0.5]


def test_the_default_data_are_those_of_the_quickstart() -> None:
    assert Data().model == "smollm2"
    assert Data().text == "documentation"
    assert from_record(Data, json.loads(json.dumps(Data().record()))) == Data()
