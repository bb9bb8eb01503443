"""Everything wrong is refused in one line that says what, before anything is trained or written:
the tables stand in `tests.wrong`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sae_bench
from tests.wrong.commands import COMMANDS
from tests.wrong.functions import FUNCTIONS

ROWS = [
    *(f"{index}: {words}" for index, (words, _) in enumerate(FUNCTIONS)),
    *(line for _, line in COMMANDS),
]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with each refusal, found in a process without a run-time type checker."""
    root = str(Path(sae_bench.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "tests.wrong", str(tmp_path_factory.mktemp("desk"))],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(ROWS, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("row", ROWS)
def test_wrong_input_is_refused(row: str, verdicts: dict[str, str]) -> None:
    assert not verdicts[row]
