"""Ablations whose SAEs are trained on a stream."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_bench import ablation
from sae_bench.checkpoints import Checkpoints
from sae_bench.contexts import Packed
from sae_bench.errors import InputError
from sae_bench.files import read_record
from sae_bench.results import Results
from sae_bench.stream import ActivationStream
from sae_bench.streamed import Streamed
from sae_bench.study import study
from sae_bench.train import Trainee
from tests.corpus import Letters
from tests.desk import ABLATION, TWO_SITES, furnish
from tests.sae_bench.test_resume import assert_same_run, killed_at

STREAMED = (
    ABLATION.replace("import Data, Preset", "import Preset")
    .replace(
        "from sae_bench.recipe", "from sae_bench.streamed import Streamed\nfrom sae_bench.recipe"
    )
    .replace("DATA = Data(", "DATA = Streamed(\n    tokens_in_buffer=256,")
    + TWO_SITES
    + """

def sample(finished):
    cache = finished.cache
    return pd.DataFrame({"rows": [cache.rows], "held_out": [cache.held_out.rows]})


FURTHER = {"sample": sample}
PRESETS = {"sites": TwoSites(DATA, 16, RECIPE)}
"""
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = furnish(tmp_path_factory.mktemp("desk"))
    (folder / "letters.py").write_text(STREAMED)
    return folder


@pytest.fixture(autouse=True)
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(desk / "cache"))


def ran(out: str, **options: Any) -> Results:
    chosen = ablation.load("letters.py")
    return study(chosen, chosen.preset(None).parts(), Path(out), device="cpu", **options)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First batches of the passes over streams."""
    starts, batches = list[int](), ActivationStream._served

    def counted(self: ActivationStream, size: int, seed: int, start: int) -> Iterator[Any]:
        starts.append(start)  # when the first batch is asked for
        yield from batches(self, size, seed, start)

    monkeypatch.setattr(ActivationStream, "_served", counted)
    return starts


@pytest.fixture(scope="module")
def whole(desk: Path) -> Results:
    """A run of both parts that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setenv("SAE_BENCH_CACHE", str(desk / "cache"))
        return ran("whole")


def test_trained_on_the_stream_measured_on_held_out_documents(whole: Results) -> None:
    table = whole.table[whole.table["status"] == "trained"]
    assert table.groupby("part").size().to_dict() == {"0": 4, "1": 4}
    assert table[["fvu", "delta_lm_loss"]].notna().all().all()
    assert set(table["eval_set"]) == {"held-out"}
    assert set(table["tokens"]) == set(whole.further["sample"]["held_out"])
    assert table["activation_scale"].nunique() == 1  # of layer 0's sample, for both parts
    for part in ("0", "1"):
        record = read_record(Path("whole") / part / "grid.json")["inputs"]["train"]
        assert (record["tokens_in_buffer"], record["site"][7]) == (256, part)


def test_arm_by_arm_in_waves_killed_and_resumed_to_the_same_bits(
    whole: Results, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    """The model runs over the text once for each wave, here of one arm."""
    monkeypatch.setattr("sae_bench.train.free_memory", lambda device: 0)
    monkeypatch.setattr(Checkpoints, "is_due", True)
    keys = [arm.split("/")[1] for arm in whole.table["arm"][:4]]
    alone = ran("parted", keys=keys[2:3])
    assert {arm.split("/")[1] for arm in alone.table["arm"]} == {keys[2]}
    assert passes == [0, 0]  # in either part
    passes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", killed_at(13, Trainee.step))  # in the second of three waves
        with pytest.raises(KeyboardInterrupt):
            ran("parted")
    assert passes == [0, 0]
    passes.clear()
    ran("parted")
    assert sorted(passes) == [0, 0, 0, 0, 4]
    for part in ("0", "1"):
        assert_same_run(Path("parted") / part, Path("whole") / part)


def test_a_second_run_reads_no_stream(whole: Results, passes: list[int]) -> None:
    again = ran("whole")
    assert passes == []
    pd.testing.assert_frame_equal(again.table, whole.table)


def test_an_arm_that_is_not_there(whole: Results) -> None:
    with pytest.raises(InputError, match="unknown arm 'relu-0'; --dry-run lists the keys"):
        ran("whole", keys=["relu-0"])


def test_what_lies_on_disk_and_what_is_shared() -> None:
    data = Streamed(
        model="model",
        site="layers.1.resid_post",
        text=Letters(),
        tokens=1000,
        held_out_tokens=200,
        context=Packed(24),
        tokens_in_buffer=256,
    )
    assert data.stored(32) == 1200 * 32 * 4
    assert data.width is None  # of a model that is not known before it is loaded
    assert data.streamed(10) == 0
    cache = data.cache("cpu").scaled(2.0)
    source = data.source(cache)
    assert isinstance(source, ActivationStream)
    assert source.scale == 2
    assert source.held_out is cache.held_out
    assert source.language_model() is cache.language_model()
