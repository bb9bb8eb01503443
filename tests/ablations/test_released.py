"""A folder of released SAEs of a tiny model, measured at their sites, and the figures."""

from pathlib import Path

import pandas as pd
import pytest

from ablations import released
from architectures import JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.cli import main
from sae_bench.contexts import Packed
from sae_bench.errors import InputError
from sae_bench.loading import save_sae
from sae_bench.plots import COLOURS
from sae_bench.results import Results
from sae_bench.sae import SparseAutoencoder
from tests.desk import furnish

RESID, MLP = "layers.1.resid_post", "layers.2.mlp_out"
DATA = released.DATA.replace(
    text="text.jsonl", tokens=400, held_out_tokens=200, context=Packed(24), lm_tokens=100
)
RUN = ["run", "released", "--model", "model", "--device", "cpu"]


def sited(sae: SparseAutoencoder, site: str | None) -> SparseAutoencoder:
    sae.provenance = {} if site is None else {"site": site}
    return sae.eval()


def jumping(threshold: float, site: str | None) -> SparseAutoencoder:
    return sited(JumpReLUSAE(32, 48, activation=JumpReLU(LogThreshold(threshold))), site)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of Gemma Scope's format and a folder of SAELens at one site, another at a second;
    SAEs that do not say their site; and a folder without any."""
    desk = furnish(tmp_path_factory.mktemp("desk"))
    for threshold in (0.1, 0.5):
        save_sae(jumping(threshold, RESID), desk / "theirs" / f"{threshold}.npz", "gemma-scope")
        save_sae(jumping(threshold, None), desk / "bare" / f"{threshold}.npz", "gemma-scope")
    save_sae(sited(ReLUSAE(32, 48), RESID), desk / "theirs" / "relu", "saelens")
    topk = sited(TopKSAE(32, 48, activation=TopK(4)), MLP)
    save_sae(topk, desk / "theirs" / "deep" / "topk", "saelens")
    (desk / "empty").mkdir()
    (desk / "empty" / "notes.txt").write_text("no SAE")
    return desk


@pytest.fixture(autouse=True)
def _at_desk(furnished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(furnished)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(furnished / "kept"))
    monkeypatch.setitem(released.PRESETS, "smollm2", released.Measured(DATA))


@pytest.fixture(scope="module")
def finished(furnished: Path) -> Path:
    """The default output folder of a run of the folder alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(furnished)
        patch.setenv("SAE_BENCH_CACHE", str(furnished / "kept"))
        patch.setitem(released.PRESETS, "smollm2", released.Measured(DATA))
        assert main([*RUN, "--released", "theirs"]) == 0
    return furnished / "results" / "runs" / "released"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*RUN, "--out", "nowhere", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not Path("nowhere").exists()
    return line


def test_every_sae_is_measured_at_its_site(finished: Path) -> None:
    table = Results.read(finished).table.set_index("released")
    assert dict(table["site"]) == {
        "theirs/0.1.npz": RESID,
        "theirs/0.5.npz": RESID,
        "theirs/relu": RESID,
        "theirs/deep/topk": MLP,
    }
    assert set(table["status"]) == {"released"}
    assert dict(table["series"].value_counts()) == {
        "theirs: JumpReLU, 48 latents": 2,
        "theirs: ReLU, 48 latents": 1,
        "theirs: TopK, 48 latents": 1,
    }
    assert table["l0"].between(1, 47).all()
    assert table["l0"]["theirs/0.1.npz"] > table["l0"]["theirs/0.5.npz"]
    assert table["delta_lm_loss"].notna().all()
    assert not list(finished.glob("*/arms/*/training.parquet"))
    assert list(pd.read_csv(finished / RESID / "table.csv")["released"]) == [
        "theirs/0.1.npz",
        "theirs/0.5.npz",
        "theirs/relu",
    ]


def test_figures_in_the_papers_axes(finished: Path) -> None:
    numbers = (2, 5, 10, 12, 13, 14, 16)
    assert {path.stem for path in (finished / "figures").glob("*.png")} == {
        f"figure_{number:02d}" for number in numbers
    }
    drawn = released.figures(Results.read(finished))
    first, *_ = drawn["figure_02"].axes
    assert first.get_title() == "Layer 1 (paper: 9)"
    lines = {line.get_label(): line for line in first.lines}
    own, behind = lines["theirs: JumpReLU, 48 latents"], lines["JumpReLU, paper"]
    assert len(own.get_xdata()) == 2
    assert own.get_color() == behind.get_color() == COLOURS["JumpReLU"]
    assert lines["theirs: ReLU, 48 latents"].get_color() == COLOURS["ReLU"]
    (own,) = (
        line
        for axes in drawn["figure_10"].axes
        for line in axes.lines
        if str(line.get_label()).startswith("theirs")
    )
    assert own.get_color() == COLOURS["TopK"]


def test_the_answer_names_every_curve(finished: Path) -> None:
    _, *said = released.answer(Results.read(finished)).splitlines()
    assert [line.split(" (")[0].strip() for line in said] == [
        f"{RESID}, theirs: JumpReLU, 48 latents",
        f"{RESID}, theirs: ReLU, 48 latents",
        f"{MLP}, theirs: TopK, 48 latents",
    ]
    assert "L0 4," in said[-1]


def test_published_tables_give_the_same_figures(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "released", "--folder", str(finished)]) == 0
    drawn = released.figures(Results.published("released", tmp_path / "results"))
    assert set(drawn) == set(released.figures(Results.read(finished)))
    assert main(["report"]) == 0
    text = (tmp_path / "results" / "REPORT.md").read_text()
    assert "- 4 SAEs (4 released), none of them trained here" in text


def test_what_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--released", "theirs", "--dry-run", "--out", "nowhere"]) == 0
    out = capsys.readouterr().out
    resid, mlp = out.split(MLP)
    assert resid.startswith(RESID)
    assert resid.count("theirs/") == 3
    assert mlp.count("theirs/") == 1


def test_saes_that_do_not_say_their_site(capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--site", "layers.0.resid_post", "--out", "bare-run"]
    assert main([*RUN, "--released", "bare", *place]) == 0
    table = Results.read("bare-run").table
    assert set(table["site"]) == {"layers.0.resid_post"}
    assert len(table) == 2
    assert Path("bare-run/figures/figure_02.png").exists()
    capsys.readouterr()
    said = refusal(capsys, "--released", "bare", "theirs")
    assert "bare/0.1.npz: does not say its site, and the parts have 2" in said


def test_another_site_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--released", "theirs", "--site", RESID)
    assert f"theirs/deep/topk: belongs to {MLP}, the activations are of {RESID}" in said


def test_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert "empty: no SAE in a known format" in refusal(capsys, "--released", "empty")
    assert "nowhere-else: no such file" in refusal(capsys, "--released", "nowhere-else")
    assert "no arms were given" in refusal(capsys)
    assert "no arms were given" in refusal(capsys, "--dry-run")


def test_more_layers_than_a_figure_has() -> None:
    sites = [f"layers.{layer}.resid_post" for layer in range(4)]
    assert list(released.Measured(DATA).measuring(sites[1:]).parts()) == sites[1:]
    with pytest.raises(InputError, match=r"3 layers, the run 4 \(0, 1, 2, 3\)"):
        released.Measured(DATA).measuring(sites)


def test_other_kinds_of_sites_have_the_standard_figures(finished: Path) -> None:
    read = Results.read(finished)
    elsewhere = Results(read.table.assign(site="embed"), read.frequencies)
    assert "fvu_vs_l0" in released.figures(elsewhere)
