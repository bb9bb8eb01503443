"""Wrong input on the command line: one line, exit code 2, before anything expensive, and nothing
that was there is touched."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest

from sae_bench import extract, reading
from sae_bench.cli import main
from sae_bench.models import LanguageModel
from sae_bench.train import Trainee
from tests.desk import ABLATION, contents, furnish

RUN = "run letters.py --device cpu"
CACHE = "cache --model model --text text.jsonl --context 24 --site layers.1.resid_post --device cpu"


@dataclass(frozen=True)
class Case:
    """A command line, and words of the line that refuses it.

    needs_model: the mistake shows only in the model's configuration.
    needs_text: the mistake shows only once the text has been read.
    """

    argv: str
    words: str
    needs_model: bool = False
    needs_text: bool = False


CASES = {
    "ablation": Case("run no-such", "unknown ablation 'no-such'; known: "),
    "ablation file": Case("run no-such.py", "no-such.py: no such file"),
    "incomplete ablation": Case("run incomplete.py", "answer is missing"),
    "preset": Case(f"{RUN} --preset huge", "unknown preset 'huge'; it has small, greedy"),
    "architecture": Case("run unknown_architecture.py", "unknown SparseAutoencoder 'MySAE'"),
    "wrong recipe": Case("run wrong_recipe.py", "lr must be a positive number"),
    "k above d_sae": Case(f"{RUN} --d-sae 4", "k = 6 is larger than d_sae = 4"),
    "no latents": Case(f"{RUN} --d-sae 0", "d_sae must be a positive integer"),
    "device": Case("run letters.py --device nonsense", "device 'nonsense' cannot be used here"),
    "model folder": Case(f"{RUN} --model ./none", "model path './none' does not exist"),
    "model name": Case(f"{RUN} --model no/such-model", "model 'no/such-model' cannot be loaded"),
    "text file": Case(f"{RUN} --text none.jsonl", "there is no file or folder 'none.jsonl'"),
    "text name": Case(f"{RUN} --text no/such-text", "'no/such-text' cannot be had from the hub"),
    "nonsense text": Case(f"{RUN} --text ???", "is no file or folder here and no data set's name"),
    "no lines": Case(f"{RUN} --text empty.jsonl", "the corpus is empty"),
    "blank lines": Case(f"{RUN} --text blank.jsonl", "the corpus is empty"),
    "not JSON": Case(f"{RUN} --text broken.jsonl", "broken.jsonl:1: not a line of JSON"),
    "no text files": Case(f"{RUN} --text model", "no .txt, .jsonl, .parquet file in 'model'"),
    "no tokens": Case(f"{RUN} --tokens 0", "must be positive"),
    "site": Case(f"{RUN} --site layers.1.nose", "unknown site 'layers.1.nose'", needs_model=True),
    "layer": Case(
        f"{RUN} --site layers.3.resid_post", "the model has layers 0..2", needs_model=True
    ),
    "few tokens": Case(
        f"{RUN} --preset greedy",
        "fewer tokens than one batch of 131072",
        needs_model=True,
        needs_text=True,
    ),
    "out is a file": Case(f"{RUN} --out text.jsonl", "exists and is not a run folder"),
    "out is full": Case(f"{RUN} --out model", "exists and is not a run folder"),
    "out below a file": Case(f"{RUN} --out text.jsonl/run", "cannot be written"),
    "out of another site": Case(
        f"{RUN} --out done --site layers.0.resid_post", "holds another grid ('data'"
    ),
    "out of more tokens": Case(f"{RUN} --out done --tokens 2000", "holds another grid ('data'"),
    "no run": Case("figures letters.py --folder model", "no tables of a finished run"),
    "figures of what": Case("figures no-such", "unknown ablation 'no-such'"),
    "cache: model": Case(f"{CACHE} --model ./none", "model path './none' does not exist"),
    "cache: text": Case(f"{CACHE} --text none.txt", "there is no file or folder 'none.txt'"),
    "cache: empty": Case(f"{CACHE} --text blank.jsonl", "the corpus is empty"),
    "cache: site": Case(f"{CACHE} --site nowhere", "unknown site 'nowhere'", needs_model=True),
    "cache: layer": Case(f"{CACHE} --site layers.9.mlp_out", "layers 0..2", needs_model=True),
    "cache: dtype": Case(f"{CACHE} --dtype int4", "dtype 'int4' is unknown"),
    "cache: model dtype": Case(f"{CACHE} --model-dtype int4", "dtype 'int4' is unknown"),
    "cache: device": Case(f"{CACHE} --device nonsense", "device 'nonsense' cannot be used here"),
    "cache: context": Case(f"{CACHE} --context 1", "must be a whole number, at least 2"),
    "cache: tokens": Case(f"{CACHE} --tokens -5", "must be positive"),
    "cache: position": Case(
        f"{CACHE} --context 200", "which has 128 positions", needs_model=True, needs_text=True
    ),
}


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk with a finished run in done/, and some wrong things."""
    folder = furnish(tmp_path_factory.mktemp("desk"))
    (folder / "empty.jsonl").write_text("")
    (folder / "blank.jsonl").write_text("\n" + json.dumps({"text": " \n"}) + "\n")
    (folder / "broken.jsonl").write_text("{\n")
    (folder / "incomplete.py").write_text(ABLATION.replace("def answer", "def verdict"))
    (folder / "wrong_recipe.py").write_text(ABLATION.replace("lr=3e-3", "lr=-1.0"))
    architecture = 'from sae_bench.registry import architecture\n\nSAE = architecture("MySAE")\n'
    (folder / "unknown_architecture.py").write_text(ABLATION + architecture)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SAE_BENCH_CACHE", str(folder / "kept"))
        assert main([*RUN.split(), "--out", "done"]) == 0
    return folder


@pytest.fixture
def desk(furnished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(furnished)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(furnished / "kept"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return furnished


def watch(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[str]:
    """Grows by one entry with each call that succeeds."""
    original: Callable[..., object] = getattr(owner, name)
    calls: list[str] = []

    def watched(*arguments: object, **options: object) -> object:
        result = original(*arguments, **options)
        calls.append(name)
        return result

    monkeypatch.setattr(owner, name, watched)
    return calls


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr, warnings aside; nothing was printed on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    return [line for line in lines if not line.startswith("sae-bench: warning: ")]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(
    case: Case, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = watch(monkeypatch, LanguageModel, "load")
    passes = watch(monkeypatch, reading, "capture")
    steps = watch(monkeypatch, Trainee, "step")
    before = contents(desk)
    assert main(case.argv.split()) == 2
    (line,) = errors(capsys)
    assert line.startswith("sae-bench: error: ")
    assert case.words in line
    assert bool(loads) == case.needs_model
    assert case.needs_text or not passes
    assert not steps
    assert contents(desk) == before


def test_no_disk_space(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(desk)._replace(free=1000)
    monkeypatch.setattr(extract.shutil, "disk_usage", lambda _: usage)
    passes = watch(monkeypatch, reading, "capture")
    before = contents(desk)
    for command in (RUN, CACHE):
        assert main([*command.split(), "--site", "layers.2.mlp_out"]) == 2
        (line,) = errors(capsys)
        assert line.startswith("sae-bench: error: ")
        assert "GB are free on that disk" in line
    assert not passes
    assert contents(desk) == before


def test_the_disk_fills_up_while_arms_are_saved(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was finished before counts when there is room again."""
    room = iter(range(7))
    fsync = os.fsync

    def filling(file: int) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        assert main([*RUN.split(), "--out", "filled"]) == 2
    (line,) = errors(capsys)
    assert "the disk is full" in line
    finished = len(list((desk / "filled").glob("arms/*/arm.json")))
    assert finished == 1
    steps = watch(monkeypatch, Trainee, "step")
    assert main([*RUN.split(), "--out", "filled"]) == 0
    assert len(steps) == (4 - finished) * 512 // 64
    assert not list((desk / "filled").rglob("*.partial"))


def test_a_text_of_one_side_only(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single document leaves the held-out side, or the training side, without text."""
    (desk / "single.txt").write_text("a few words " * 20)
    steps = watch(monkeypatch, Trainee, "step")
    assert main([*RUN.split(), "--text", "single.txt", "--out", "single"]) == 2
    (line,) = errors(capsys)
    assert "it needs more documents" in line
    assert not steps
    assert not (desk / "single").exists()


def test_the_finished_run_is_not_refused(desk: Path) -> None:
    """The cases above are refused for their mistakes, not for what they have in common."""
    assert main([*RUN.split(), "--out", "done"]) == 0
