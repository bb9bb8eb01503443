"""The command line, called in process."""

from pathlib import Path

import pandas as pd
import pytest

from sae_bench import ablation
from sae_bench.cache import ActivationCache
from sae_bench.cli import main
from sae_bench.commands import summary
from sae_bench.errors import InputError
from tests.desk import contents, furnish

CACHE = ["cache", "--model", "model", "--text", "text.jsonl", "--context", "24", "--device", "cpu"]
RUN = ["run", "letters.py", "--device", "cpu"]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("desk"))


@pytest.fixture(autouse=True)
def desk(furnished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(furnished)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(furnished / "kept"))
    return furnished


@pytest.fixture(scope="module")
def finished(furnished: Path) -> Path:
    """The default output folder after a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(furnished)
        patch.setenv("SAE_BENCH_CACHE", str(furnished / "kept"))
        assert main(RUN) == 0
    return furnished / "results" / "runs" / "letters"


@pytest.mark.parametrize(
    "command", [[], ["cache"], ["run"], ["figures"], ["publish"], ["upload"], ["list"]]
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: sae-bench" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["dance"], ["run"], ["cache", "--tokens", "many"]])
def test_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("ReLUSAE", "TopKSAE", "GatedSAE", "JumpReLUSAE", "quickstart"):
        assert f"  {name} " in out
    assert "(presets: smollm2" in out


def test_dry_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(desk)
    assert main([*RUN, "--dry-run", "--d-sae", "20", "--out", "nowhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("-")[0] for line in lines] == ["relu"] * 2 + ["topk"] * 3
    assert "L0" in lines[-1]
    assert contents(desk) == before


def test_a_run_from_text_to_figures(finished: Path) -> None:
    table = pd.read_csv(finished / "table.csv")
    assert list(table["status"]) == ["trained"] * 4 + ["skipped"]
    assert table["delta_lm_loss"].notna().sum() == 4
    assert set(table["model"]) == {"model"}
    assert {path.name for path in (finished / "figures").iterdir()} == {
        f"{name}.{ending}"
        for name in ("fvu_vs_l0", "delta_lm_loss_vs_l0", "frequency_histograms")
        for ending in ("png", "svg")
    }


def test_a_run_again(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained; the screen shows the table, the verdict and where things are."""
    monkeypatch.setattr("sae_bench.train.Trainee.step", lambda *_: pytest.fail("was trained"))
    before = contents(finished)
    assert main(RUN) == 0
    out = capsys.readouterr().out
    table = pd.read_csv(finished / "table.csv")
    assert f"{table['fvu'][0]:.3f}" in out
    assert f"the best FVU is {table['fvu'].min():.3f}" in out
    assert f"{table['arm'][4]}: skipped: " in out
    assert "results/runs/letters/table.csv" in out
    assert "figure: results/runs/letters/figures/fvu_vs_l0.png" in out
    after = contents(finished)
    assert {name for name in before if before[name] != after[name]} <= {"grid.json"}


def test_minutes_between_checkpoints(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def run(*_: object, checkpoint_every: float, **__: object) -> None:
        asked.append(checkpoint_every)
        raise InputError("that is all")

    monkeypatch.setattr("sae_bench.commands.run", run)
    for options in ([], ["--checkpoint-minutes", "0.5"]):
        assert main([*RUN, "--out", "unused", *options]) == 2
    assert asked == [600, 30]


def test_figures_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    for path in (finished / "figures").iterdir():
        path.unlink()
    assert main(["figures", "letters.py"]) == 0
    assert main(["figures", "letters.py", "--folder", str(finished)]) == 0
    assert contents(finished) == before
    assert capsys.readouterr().out.count("figure: ") == 6


def test_other_settings_go_elsewhere(finished: Path, desk: Path) -> None:
    options = ["--out", "other", "--d-sae", "20", "--site", "layers.0.mlp_out", "--preset", "small"]
    assert main([*RUN, *options]) == 0
    table = pd.read_csv(desk / "other" / "table.csv")
    assert set(table["d_sae"]) == {20}
    assert set(table["site"]) == {"layers.0.mlp_out"}


def test_cache(capsys: pytest.CaptureFixture[str]) -> None:
    sites = ["--site", "layers.0.mlp_out", "layers.1.resid_post"]
    size = ["--tokens", "500", "--held-out-tokens", "100"]
    assert main([*CACHE, *sites, *size, "--per-document", "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("layers.0.mlp_out: ")
    assert lines[2].startswith("layers.1.resid_post: ")
    cache = ActivationCache.open(lines[3].strip(), device="cpu")
    assert f"{cache.rows} training" in lines[2]
    assert cache.record()["dtype"] == "bfloat16"
    assert cache.record()["context"] == {"class": "PerDocument", "length": 24}
    assert cache.held_out is not None


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    site = ["--site", "layers.1.resid_post"]
    assert main([*CACHE, *site, "--tokens", "1000000", "--held-out-tokens", "0"]) == 0
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith("sae-bench: warning: ")
    assert "ended early" in warnings[0]


def test_the_summary_names_the_setting() -> None:
    rows = {
        "arm": ["a", "b"],
        "series": ["ReLU", "TopK"],
        "penalty": ["L1", "NoPenalty"],
        "coefficient": [0.04, 0.0],
        "activation": ["ReLU", "TopK(32)"],
        "seed": [0, 0],
        "l0": [30.25, float("nan")],
        "status": ["trained", "failed"],
        "reason": ["", "diverged"],
    }
    head, first, second, last = summary(pd.DataFrame(rows)).splitlines()
    assert head.split() == ["arm", "setting", "L0", "status"]
    assert first.split() == ["ReLU", "L1(0.04)", "30.250", "trained"]
    assert second.split() == ["TopK", "TopK(32)", "-", "failed"]
    assert last == "b: failed: diverged"
    rows["seed"] = [0, 1]
    assert "seed" in summary(pd.DataFrame(rows)).splitlines()[0]


def test_published_tables_give_the_figures_of_the_run(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed CSV loses nothing that a figure shows, and stands without the run."""
    assert main(["publish", "letters.py"]) == 0
    drawn = contents(Path("results/figures/letters"))
    assert drawn == contents(finished / "figures")
    monkeypatch.setattr("sae_bench.ablation.names", lambda: ["letters"])
    loaded = ablation.load("letters.py")
    monkeypatch.setattr("sae_bench.ablation.load", lambda _: loaded)
    for path in Path("results/figures/letters").iterdir():
        path.unlink()
    assert main(["figures"]) == 0
    assert contents(Path("results/figures/letters")) == drawn
    assert capsys.readouterr().out.count("figure: ") == 6
