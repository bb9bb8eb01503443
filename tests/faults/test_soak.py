"""The soak looks at what it should, and sees what grows."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.faults import soak
from tests.small import ARCHITECTURES

LEVEL = pd.DataFrame({"step": np.arange(0, 50_000, 100)}).assign(
    memory=400.0, files=7, step_ms=20.0, checkpoint=0
)


def test_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["soak", str(tmp_path), "--steps", "30", "--checkpoint-seconds", "0"]
    monkeypatch.setattr(sys, "argv", words)
    soak.main()
    assert "by step 29" in capsys.readouterr().out
    seen = pd.read_csv(tmp_path / "soak.csv")
    assert list(seen["step"]) == list(range(30))
    assert seen["checkpoint"].iloc[-1] > 0
    assert seen.drop(columns="checkpoint").iloc[1:].gt(0).all(axis=None)
    assert (tmp_path / "soak.png").exists()


def test_its_arms() -> None:
    arms = soak.arms(100)
    assert len({arm.key for arm in arms}) == 24
    assert {arm.architecture for arm in arms} == set(ARCHITECTURES.values())
    assert not any(arm.objection for arm in arms)


@pytest.mark.parametrize(
    ("column", "change", "fine"),
    [
        ("memory", lambda share: 1 + 0.01 * share, True),
        ("memory", lambda share: 1 + 0.03 * share, False),
        ("memory", lambda share: 1 + 0.5 * (share > 0.02), True),  # within the warm-up
        ("files", lambda share: 1 + (share > 0.95), False),
        ("step_ms", lambda share: 1 + 0.15 * share, False),
        ("step_ms", lambda share: 1 + (share * 500 % 3 < 1), True),  # other work on the machine
    ],
)
def test_the_verdict(column: str, change: Callable[[pd.Series], pd.Series], fine: bool) -> None:
    share = LEVEL["step"] / LEVEL["step"].max()
    line, found = soak.verdict(LEVEL.assign(**{column: LEVEL[column] * change(share)}))
    assert found is fine
    assert line.startswith("nothing grew" if fine else "GREW")
