"""The benchmarks at toy size, without other libraries; and whether the reference is a fair one."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from architectures import TopKSAE
from benchmarks import curves, dense, ours, ours_dense, speed
from benchmarks.case import Case, quality
from benchmarks.data import shape, shared
from benchmarks.pool import Worker, WorkerError, pythons
from benchmarks.sides import Setting, missing, run
from benchmarks.table import Table
from sae_bench.cache import ActivationCache
from sae_bench.synthetic import SyntheticFeatures

D_IN = 24
COLUMNS = (
    *("library", "architecture", "d_in", "d_sae", "l0", "batch", "encoder_products"),
    *("encoder_products_low", "encoder_products_high", "encoder_ms", "peak_mb", "fvu"),
    *("threads", "steps", "seed", "device", "torch"),
)
SMALL = Case("", d_sae=64, l0=6, batch=128, warm_batch=64, warm_steps=60, lr=3e-3, bandwidth=0.1)


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    return SyntheticFeatures(D_IN, 48, 4.0).cache(6000, seed=0)


@pytest.fixture(scope="module")
def batches(cache: ActivationCache) -> list[Tensor]:
    source = cache.batches(SMALL.batch, 0)
    return [next(source) for _ in range(40)]


@pytest.mark.parametrize("architecture", speed.SIX)
def test_the_reference_computes_what_ours_computes(
    architecture: str, batches: list[Tensor]
) -> None:
    """Equal loss after equal steps: rounding alone sets them apart."""
    case = speed.case_of(architecture, SMALL)
    rows = torch.cat(batches[:8])
    arms = [library.ARMS[architecture](case, batches[0]) for library in (ours, ours_dense, dense)]
    before = quality(arms[0], rows, case.batch)
    for x in batches:
        for arm in arms:
            arm.step(x)
    ours_now, *others = (quality(arm, rows, case.batch) for arm in arms)
    assert ours_now["fvu"] < 0.8 * before["fvu"]
    for now in others:
        assert now["fvu"] == pytest.approx(ours_now["fvu"], rel=1e-3)
        assert now["l0"] == pytest.approx(ours_now["l0"], rel=1e-2)


def test_dense_steps_are_dense(batches: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    original = TopKSAE.sparsely
    monkeypatch.setattr(
        TopKSAE, "sparsely", lambda self, most: (tried.append(self), original(self, most))[1]
    )
    case = speed.case_of("TopK", SMALL)
    ours_dense.ARMS["TopK"](case, batches[0]).step(batches[0])
    assert not tried
    ours.ARMS["TopK"](case, batches[0]).step(batches[0])
    assert tried


@pytest.mark.parametrize("library", [ours, ours_dense, dense])
def test_coefficients_can_be_set(library: object, batches: list[Tensor]) -> None:
    for name, build in library.ARMS.items():  # type: ignore[attr-defined]
        arm = build(speed.case_of(name, SMALL), batches[0])
        if name in speed.START:
            arm.charge(0.125)
            assert arm.coefficient() == 0.125
            arm.step(batches[0])
        else:
            assert arm.coefficient() is None


def test_a_run_is_measured_once(
    cache: ActivationCache,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "default_cache", lambda folder, device: cache)
    words = ["--libraries", "ours", "dense", "--architectures", "TopK", "JumpReLU + WindowKDE"]
    words += ["--d-sae", "64", "--l0", "6", "--batch", "128", "--warm-batch", "64"]
    words += ["--warm-steps", "30", "--rounds", "2", "--repeats", "2", "--out", str(tmp_path)]
    assert speed.main(words) == 0
    path = tmp_path / "tables" / "speed.csv"
    table = pd.read_csv(path)
    assert {*COLUMNS} <= {*table.columns}
    assert list(table["library"]) == ["ours", "dense", "ours"]
    assert (table["encoder_products"] > 1).all()
    assert (table["timed_steps"] == 4).all()
    assert (tmp_path / "figures" / "speed" / "encoder_products.svg").exists()
    written = path.read_bytes()
    assert speed.main(words) == 0
    assert path.read_bytes() == written
    assert "WindowKDE" in capsys.readouterr().out


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--architectures", "Nonsense"],
        ["--libraries", "nonsense"],
        ["--rounds", "0"],
        ["--device", "nonsense"],
    ):
        assert speed.main([*words, "--out", str(tmp_path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_worker_that_fails_is_a_row_and_the_others_go_on(
    cache: ActivationCache, tmp_path: Path
) -> None:
    path, name = shared(cache, tmp_path)
    setting = Setting(
        path, name, shape(path)[1], "code", "here", pythons("none"), tmp_path, rounds=1, repeats=1
    )
    case = speed.case_of("TopK", SMALL)
    cell = {"ours": case, "dense": speed.case_of("Nonsense", SMALL)}
    table = Table(tmp_path / "table.csv")
    (failed,) = run([cell], setting, table)
    assert "dense has no Nonsense" in failed
    again = Table(tmp_path / "table.csv")
    keys = [setting.key(library, case) for library, case in cell.items()]
    assert list(again.frame(keys)["library"]) == ["ours"]
    assert [list(left) for left in missing([cell], setting, again)] == [["dense"]]
    other = replace(setting, code="other code")
    assert [list(left) for left in missing([cell], other, again)] == [["ours", "dense"]]


def test_a_worker_that_dies_is_an_error(tmp_path: Path) -> None:
    with Worker("dense", pythons("none")["ours"], tmp_path / "log", 1) as worker:
        assert worker._process.stdin is not None
        worker._process.stdin.write("nonsense\n")
        with pytest.raises(WorkerError, match=r"the process ended: .*exit code"):
            worker.ask("quality")


def test_the_curve_varies_one_axis_at_a_time() -> None:
    base = speed.case_of("TopK", Case(""))
    for axis, case in curves.along(Case(""), ["TopK"]):
        changed = {name for name, value in case.record().items() if value != base.record()[name]}
        assert changed <= {axis}
