"""The report says what tables say, with links that lead somewhere, the same every time."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sae_bench import ablation
from sae_bench.cli import main
from sae_bench.report import Section, _command, report
from sae_bench.results import Results
from tests.desk import ABLATION


@pytest.fixture
def letters(tmp_path: Path) -> ablation.Ablation:
    path = tmp_path / "letters.py"
    path.write_text(
        ABLATION.replace(
            'return f"the best FVU',
            'return f"Of the two:\\n  one is better\\n  one is worse\\nand the best FVU',
        )
    )
    return ablation.load(str(path))


def results(arms: list[str]) -> Results:
    rows = [
        {"arm": arm, "status": "trained", "seed": 0.0, "train_tokens": 512, "seconds": 1800.0}
        | {"fvu": 0.25, "tokens": 200, "lm_tokens": float("nan")}
        for arm in arms
    ]
    return Results(pd.DataFrame(rows), pd.DataFrame())


def section(chosen: ablation.Ablation, arms: list[str]) -> str:
    paths = [Path("figures/letters/a_b.png")], [Path("tables/letters.csv")]
    return Section(chosen, results(arms), *paths).text()


def test_a_section(letters: ablation.Ablation) -> None:
    keys = [arm.key for arm in letters.arms(letters.preset("small"))]
    text = section(letters, keys)
    assert text.startswith("## letters\n\n**Is ReLU or TopK better on letters?**\n")
    assert "\n\nOf the two:\n\n- one is better\n- one is worse\n\nand the best FVU is 0.250" in text
    assert "![letters: a b](figures/letters/a_b.png)" in text
    assert "A second paragraph." in text
    assert "`sae-bench run letters --preset small`, `sae-bench publish letters`\n" in text
    assert "- 5 arms (5 trained), seed 0\n" in text
    assert "512; 2.5 hours of training steps in all" in text
    assert "tokens measured: 200" in text
    assert "scored by the model" not in text
    assert "[tables/letters.csv](tables/letters.csv)" in text


def test_tables_of_numbers_stay_tables(letters: ablation.Ablation) -> None:
    rows = ["           L0   FVU", "    one  47.7  0.15", "    a longer one 4 0.2"]
    said = "\n".join(
        ["Means:", "  an item", "  and a table:", *rows, "  another item", "    nested"]
    )
    text = Section(replace(letters, answer=lambda _: said), results(["a"]), [], []).text()
    table = "\n".join(["```text", *(row[4:] for row in rows), "```"])
    assert f"- an item\n- and a table:\n\n{table}\n\n- another item\n  - nested\n" in text


def test_parts_of_a_grid_and_settings_of_the_past(letters: ablation.Ablation) -> None:
    keys = [arm.key for arm in letters.arms(letters.preset("small"))]
    assert "(2 of its 5 arms so far)" in section(letters, keys[:2])
    assert "settings that no preset has now" in section(letters, ["other", *keys])


def test_a_caption_stands_below_its_figure(letters: ablation.Ablation) -> None:
    drawn = [Path("figures/letters/a.png"), Path("figures/letters/b.png")]
    known = replace(letters, captions={"a": "Bars are seeds."})
    text = Section(known, results(["a"]), drawn, []).text()
    assert "](figures/letters/a.png)\n\n*Bars are seeds.*\n\n![letters: b](" in text


def test_the_command_names_the_parts_that_were_run() -> None:
    chosen = ablation.load("factorial")
    parts = chosen.presets["study"].parts()
    arms = [
        f"{name}/{arm.key}" for name in ("cells-1", "cells-3") for arm in chosen.arms(parts[name])
    ]
    run = "`sae-bench run factorial --preset study --parts cells-1 cells-3`, "
    assert f"{run}`sae-bench publish factorial` (72 of its 270 arms so far)" in _command(
        chosen, set(arms)
    )


def test_the_same_text_every_time(letters: ablation.Ablation) -> None:
    one = Section(letters, results(["a"]), [], [])
    text = report([one, one])
    assert text == report([one, one])
    assert text.count("- [Is ReLU or TopK better on letters?](#letters)") == 2
    assert text.count("\n## letters\n") == 2


def test_nothing_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "nothing is published; run `sae-bench publish`" in capsys.readouterr().err


def test_the_committed_tables_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every link of the report leads to a file."""
    published = Path(__file__).parents[2] / "results"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tables").symlink_to(published / "tables")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae_bench.ablation.names", lambda: ["adaptive_l0", "quickstart"])
    assert main(["report"]) == 0
    text = (tmp_path / "results" / "REPORT.md").read_text()
    found = pd.read_csv(tmp_path / "results" / "contrasts" / "adaptive_l0.csv")
    assert (found["low"] <= found["mean"]).all()
    assert "[contrasts/adaptive_l0.csv](contrasts/adaptive_l0.csv)" in text
    links = re.findall(r"\]\(([^#)]+)\)", text)
    assert len(links) >= 3
    assert all((tmp_path / "results" / link).exists() for link in links)
