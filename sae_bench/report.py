"""The report: what was asked, what was found, and what made it, from published tables alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from sae_bench.ablation import Ablation
from sae_bench.results import Results
from sae_bench.store import RELEASED

HEAD = """# Report

Each section is one ablation: its question, its answer in words and numbers, its figures, what was
settled before it was run, and the command that made it. All of it is drawn from the tables beside
it: `sae-bench figures` draws the figures again, `sae-bench report` writes this file again, offline,
and the main differences that answers rest on, one a row (`contrasts/`). "A over B" and "A against
B" are A minus B: of logarithms as a change in percent, of shares in points (hundredths). A mean
over places is one over values of L0, at each of which curves are read off by monotone
interpolation.
"""


@dataclass(frozen=True)
class Section:
    """One published ablation.

    Args:
        ablation: its file.
        results: its published tables.
        figures: its figures, relative to the report.
        tables: its tables, likewise.
    """

    ablation: Ablation
    results: Results
    figures: Sequence[Path]
    tables: Sequence[Path]

    @property
    def question(self) -> str:
        """The first paragraph of the file's docstring, in one line."""
        return " ".join(self.ablation.question.split("\n\n")[0].split())

    def text(self) -> str:
        """The section in Markdown."""
        name = self.ablation.name
        _, _, stated = self.ablation.question.partition("\n\n")
        blocks = [f"## {name}", f"**{self.question}**"]
        if said := self.ablation.answer(self.results):
            blocks.append("\n".join(_listed(said)))
        for path in self.figures:
            blocks.append(f"![{name}: {path.stem.replace('_', ' ')}]({path})")
            if caption := self.ablation.captions.get(path.stem):
                blocks.append(f"*{caption}*")
        if stated:
            blocks += ["### How it was done", stated.strip()]
        blocks += ["### What made it", "\n".join(self._made())]
        return "\n\n".join(blocks)

    def _made(self) -> Iterator[str]:
        table = self.results.table
        arms = table.drop_duplicates("arm")
        trained = arms[arms["status"] != RELEASED]
        yield f"- {_command(self.ablation, set(trained['arm']))}"
        counts = arms["status"].value_counts()
        shown = ", ".join(f"{count} {status}" for status, count in counts.items())
        if trained.empty:
            yield f"- {len(arms)} SAEs ({shown}), none of them trained here"
        else:
            seeds = sorted(trained["seed"].astype(int).unique())
            listed = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
            yield f"- {len(arms)} arms ({shown}), {listed}"
            tokens = sorted(trained["train_tokens"].astype(int).unique())
            yield (
                f"- training tokens of an arm: {', '.join(f'{n:,}' for n in tokens)}; "
                f"{_hours(trained['seconds'])} of training steps in all"
            )
        for column, words in (("tokens", "tokens measured"), ("lm_tokens", "scored by the model")):
            if column in table and (sizes := table[column].dropna().astype(int).unique()).size:
                yield f"- {words}: {', '.join(f'{n:,}' for n in sorted(sizes))}"
        links = ", ".join(f"[{path}]({path})" for path in self.tables)
        yield f"- tables: {links}"


def _listed(answer: str) -> Iterator[str]:
    """Paragraphs; lines with an indent become items of a list; runs of lines with an indent of four
    or more of which one has aligned columns are tables of numbers, and stay as they are."""
    before = ""
    for kind, run in groupby(answer.splitlines(), key=_kind):
        lines = list(run)
        if kind == "    " and any("  " in line.strip() for line in lines):
            yield from ("", "```text", *(line[4:] for line in lines), "```")
            before = ""
            continue
        for line in lines:
            here = "- " if kind else ""
            if not here or not before:
                yield ""
            deeper = "  " if kind == "    " and before else ""
            yield deeper + here + line.strip()
            before = here


def _kind(line: str) -> str:
    """The indent that decides what a line is: none, two or four spaces."""
    return next((indent for indent in ("    ", "  ") if line.startswith(indent)), "")


def _hours(seconds: "pd.Series[float]") -> str:
    return f"{seconds.sum() / 3600:.1f} hours"


def _command(ablation: Ablation, arms: set[str]) -> str:
    """The command whose arms these are, all or some of them."""
    for name, preset in ablation.presets.items():
        parts = preset.parts()
        made = {
            f"{part}/{arm.key}" if len(parts) > 1 else arm.key
            for part, settings in parts.items()
            for arm in ablation.arms(settings)
        }
        if arms <= made:
            share = "" if arms == made else f" ({len(arms)} of its {len(made)} arms so far)"
            run = f"sae-bench run {ablation.name} --preset {name}"
            run_parts = [part for part in parts if any(arm.startswith(f"{part}/") for arm in arms)]
            if 0 < len(run_parts) < len(parts):
                run += f" --parts {' '.join(run_parts)}"
            return f"`{run}`, `sae-bench publish {ablation.name}`{share}"
    return "made with settings that no preset has now"


def report(sections: Iterable[Section]) -> str:
    """The whole report in Markdown, the same text for the same tables."""
    sections = list(sections)
    contents = [f"- [{each.question}](#{each.ablation.name})" for each in sections]
    return "\n\n".join([HEAD.strip(), "\n".join(contents), *(s.text() for s in sections)]) + "\n"
