"""The command line, called in process."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from sae_bench import ablation
from sae_bench.cache import ActivationCache
from sae_bench.cli import main
from sae_bench.commands import summary
from sae_bench.errors import InputError
from sae_bench.modules import load_file
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
    built_in = ("ReLUSAE", "TopKSAE", "GatedSAE", "JumpReLUSAE", "quickstart")
    parts = ("JumpReLU", "TopK", "L0", "RIL1", "Triangle", "WindowKDE", "UnitRows")
    for name in (*built_in, *parts):
        assert f"  {name} " in out
    for base in ("Penalty", "Kernel", "FixedL0", "Remembering", "SideBySide"):
        assert f"  {base} " not in out
    assert "(presets: smollm2" in out


def test_dry_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(desk)
    assert main([*RUN, "--dry-run", "--d-sae", "20", "--out", "nowhere"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["key", "arm", "setting", "d_sae", "seed", "skipped"]
    assert [line.split("-")[0].strip() for line in lines] == ["relu"] * 2 + ["topk"] * 3
    assert lines[1].split()[1:] == ["ReLU", "L1(0.1)", "20", "0"]
    assert "TopK fixes L0 by construction" in lines[-1]
    assert contents(desk) == before


def test_cost(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(desk)
    assert main([*RUN, "--cost", "32", "--out", "nowhere"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    flop = 4 * 512 * 5 * 2 * 32 * 16
    assert last.startswith(f"cost: 4 arms see 2.05e+03 tokens: {flop:.2e} FLOP")
    assert last.endswith("activations on disk 0.000154 GB")
    assert contents(desk) == before


def test_the_cost_of_one_cell_of_the_papers_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Known without the model, whose widths are known."""
    paper = ["run", "paper", "--preset", "gemma-2-9b", "--dry-run"]
    assert main([*paper, "--parts", "layers.20.attn_z", "--arms", "jumprelu-9d894e18606a"]) == 0
    name, _, cell, cost = capsys.readouterr().out.splitlines()
    assert (name, cell.split()[2]) == ("layers.20.attn_z", "L0(0.0006)")
    assert cost.startswith(f"cost: 1 arms see 8e+09 tokens: {8e9 * 5 * 2 * 4096 * 2**17:.2e} FLOP")
    assert cost.endswith("activations on disk 84.4 GB")
    assert main([*paper, "--parts", "variants", "--arms", "relu-0"]) == 2
    assert "unknown arm 'relu-0'; --dry-run lists the keys" in capsys.readouterr().err


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
    assert {name for name in before if before[name] != after[name]} <= {
        "grid.json",
        "grid.copy.json",
    }


def test_minutes_between_checkpoints(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def run(*_: object, checkpoint_every: float, **__: object) -> None:
        asked.append(checkpoint_every)
        raise InputError("that is all")

    monkeypatch.setattr("sae_bench.study.run", run)
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


def test_figures_of_a_folder_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    for path in (finished / "figures").iterdir():
        path.unlink()
    assert main(["figures", "--folder", str(finished)]) == 0
    assert contents(finished) == before  # the ablation's own are the standard ones
    assert capsys.readouterr().out.count("figure: ") == 3


REFERENCE = """

def reference():
    drawn = plots.figure()
    drawn.axes[0].plot([1, 2], [2, 1])
    return {"theirs": drawn}
"""


def test_published_figures_redrawn(capsys: pytest.CaptureFixture[str]) -> None:
    Path("held.py").write_text(Path("letters.py").read_text() + REFERENCE)
    assert main(["figures", "held.py", "--reference"]) == 0
    folder = Path("results/figures/held-reference")
    assert {path.name for path in folder.iterdir()} == {"theirs.png", "theirs.svg"}
    assert f"figure: {folder}/theirs.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["letters.py"], "letters: it has no published figures"), ([], "of which ablation?")],
)
def test_no_published_figures(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", *argv, "--reference"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sae-bench: error: ")
    assert words in line


def test_a_part_of_a_run_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms that are not asked for stay as they are."""
    shutil.copytree(finished, "part")
    before = contents(Path("part/arms"))
    monkeypatch.setattr("sae_bench.train.Trainee.step", lambda *_: pytest.fail("was trained"))
    code = Path("letters.py").read_text().replace("[L1(0.01), L1(0.1)]", "L1(0.1)")
    Path("fewer.py").write_text(code)
    assert main(["run", "fewer.py", "--device", "cpu", "--out", "part"]) == 0
    assert len(pd.read_csv("part/table.csv")) == 4
    assert main([*RUN, "--out", "part"]) == 0
    assert len(pd.read_csv("part/table.csv")) == 5
    assert contents(Path("part/arms")) == before


MINE = """
from dataclasses import dataclass

from architectures import ReLUSAE
from sae_bench.penalties import L1
from sae_bench.kernels import Kernel, Triangle
from value_beside import VALUE


class ImportedSAE(ReLUSAE):
    penalty: L1 = L1(VALUE)


@dataclass(frozen=True)
class ImportedL1(L1):
    pass


@dataclass(frozen=True)
class Flat(Triangle):
    def density(self, u):
        return 2 * super().density(u)


triangle, example, text = Triangle(0.1), ImportedL1(0.1), "text"
"""


@pytest.fixture
def mine(desk: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (desk / "elsewhere").mkdir(exist_ok=True)
    (desk / "elsewhere" / "mine.py").write_text(MINE)
    (desk / "elsewhere" / "value_beside.py").write_text("VALUE = 0.25\n")
    return "elsewhere/mine.py"


def test_saes_of_ones_own_classes_are_imported(
    mine: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_file(Path(mine)).ImportedSAE(4, 8).save("of_mine")
    renamed = json.loads(Path("of_mine/config.json").read_text())
    renamed["architecture"] = "Imported2SAE"
    Path("of_mine/config.json").write_text(json.dumps(renamed))
    convert = ["convert", "of_mine", "out.safetensors", "--to", "sae-ablations"]
    assert main(convert) == 2
    assert "--import FILE_OR_MODULE" in capsys.readouterr().err
    Path("two.py").write_text(
        "from architectures import ReLUSAE\nclass Imported2SAE(ReLUSAE): ...\n"
    )
    assert main([*convert, "--import", "two.py"]) == 0
    captured = capsys.readouterr()
    assert "Imported2SAE, d_in 4, d_sae 8" in captured.out
    assert "the code of Imported2SAE or of its parts has changed" in captured.err
    assert main([*convert[:2], "again", *convert[3:], "--import", "none.py"]) == 2
    assert "none.py: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("ImportedSAE", 0, "passed  is_found_by_its_name"),
        ("example", 0, "passed  states_its_slope"),
        ("triangle", 0, "passed  integrates_to_one"),
        ("Flat", 1, "FAILED  integrates_to_one"),
        ("ImportedL1", 2, "ImportedL1 has no default for coefficient; give the name of an object"),
        ("text", 2, "is nothing that can be checked"),
        ("Nothing", 2, "there is no 'Nothing' in it"),
    ],
)
def test_check(
    mine: str, name: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", f"{mine}:{name}"]) == code
    captured = capsys.readouterr()
    assert words in (captured.err if code == 2 else captured.out)


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
    away = finished.rename(finished.with_name("away"))
    try:
        assert main(["figures", "letters.py"]) == 0
    finally:
        away.rename(finished)
    assert capsys.readouterr().out.count("figure: results/figures/letters/") == 3
