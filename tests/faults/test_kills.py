"""SIGKILL at random moments, over and over: the tables are those of an undisturbed run."""

import json
from pathlib import Path

import pytest

from tests.desk import furnish
from tests.faults.chain import chain, undisturbed
from tests.faults.jobs import POINTS, Desk, moments

pytestmark = pytest.mark.faults

KILLS = 100


def test_a_hundred_kills(tmp_path: Path) -> None:
    """Over extraction, training, checkpoints, evaluation and the writing of tables, below a path
    with spaces and letters of several alphabets."""
    folder = tmp_path / "a désk with späces, 数"
    folder.mkdir()
    desk = Desk(furnish(folder), ("run", "letters.py", "--device", "cpu"))
    log = tmp_path / "log.txt"
    counts, seconds = undisturbed(desk.job, POINTS, log)
    desk.aside()
    deaths = chain(desk.job, moments(counts, seconds, seed=0), KILLS, log, desk.aside)
    print(f"\n{json.dumps(deaths)}, {len(list(folder.glob('finished-*')))} runs finished")
    assert desk.differences() == []
    assert all(deaths.get(point.name) for point in POINTS), deaths
