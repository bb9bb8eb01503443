"""SIGKILL at random moments, over and over: the tables are those of an undisturbed run."""

import json
from pathlib import Path

import pytest

from sae_bench.default_model import SMOLLM2
from sae_bench.folders import cache_root
from sae_bench.models import LanguageModel
from tests.desk import furnish
from tests.faults.chain import chain, undisturbed
from tests.faults.jobs import POINTS, DefaultModel, Desk, moments, own_ablation

pytestmark = pytest.mark.faults

DEFAULT = cache_root() / "models" / Path(SMOLLM2.member).name


def assert_survives(desk: Desk, kills: int, log: Path) -> None:
    """Over extraction, training, checkpoints, evaluation and the writing of tables."""
    counts, seconds = undisturbed(desk.job, POINTS, log)
    assert all(counts.values()), counts
    desk.aside()
    deaths = chain(desk.job, moments(counts, seconds, seed=0), kills, log, desk.aside)
    finished = len(list(desk.folder.glob("finished-*")))
    print(f"\n{json.dumps(deaths)}, {finished} runs finished, {seconds:.1f} s each, undisturbed")
    assert desk.differences() == []
    assert {point.name for point in POINTS} <= deaths.keys()


def test_a_hundred_kills(tmp_path: Path) -> None:
    """Of a run from the command line, below a path with spaces and letters of several alphabets."""
    folder = tmp_path / "a désk with späces, 数"
    folder.mkdir()
    assert_survives(Desk(furnish(folder), own_ablation), 100, tmp_path / "log.txt")


@pytest.mark.skipif(not DEFAULT.is_file(), reason="the default model has not been fetched")
def test_kills_on_the_default_model(tmp_path: Path) -> None:
    """At every point at least once."""
    folder = tmp_path / "desk"
    folder.mkdir()
    work = DefaultModel(LanguageModel.load("smollm2", device="cpu"))
    assert_survives(Desk(folder, work), 10, tmp_path / "log.txt")
