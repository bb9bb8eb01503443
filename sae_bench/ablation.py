"""Ablations: one file a question, found by name or by path.

An ablation is a Python file whose docstring states the question and which defines

    PRESETS: dict[str, Preset]             settings it can be run at; the first is the default
    arms(preset) -> list[Arm]              the grid
    figures(results) -> dict[str, Figure]  the plots, by file name
    answer(table) -> str                   the verdict in words and numbers
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import pandas as pd

from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.components import Component
from sae_bench.contexts import ContextPolicy, Packed
from sae_bench.errors import InputError
from sae_bench.evaluate import LM_TOKENS
from sae_bench.files import write_table
from sae_bench.modules import load_file
from sae_bench.recipe import Recipe
from sae_bench.store import MEASURED
from sae_bench.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = Callable[["Results"], "dict[str, Figure]"]
"""Draws the figures of a run from its tables, by file name."""


@dataclass(frozen=True)
class Data(Component):
    """Which activations an ablation uses; arguments as in `ActivationCache.build`.

    Args:
        lm_tokens: tokens of the language-model evaluation.
    """

    model: str = "smollm2"
    site: str = "layers.9.resid_post"
    text: str | Text = "documentation"
    tokens: int = 98_304
    held_out_tokens: int = 16_384
    context: ContextPolicy = Packed(256)
    dtype: str = "float32"
    model_dtype: str = "float32"
    lm_tokens: int = LM_TOKENS

    def cache(self, device: str | None = None) -> ActivationCache:
        """Builds the cache, or finds it."""
        caches = ActivationCache.build(
            self.model,
            [self.site],
            self.text,
            self.tokens,
            held_out_tokens=self.held_out_tokens,
            context=self.context,
            dtype=self.dtype,
            model_dtype=self.model_dtype,
            device=device,
        )
        return caches[self.site]


@dataclass(frozen=True)
class Preset(Component):
    """A scale at which an ablation is run.

    Args:
        data: the activations.
        d_sae: number of latents.
        recipe: how arms are trained, unless the ablation tunes an arm's own.
    """

    data: Data
    d_sae: int
    recipe: Recipe


@dataclass(frozen=True)
class Results:
    """What figures are drawn from: the tables of a run.

    table: one row an arm and evaluation set; frequencies: columns arm, eval_set and frequency, an
    array of firing rates.
    """

    table: pd.DataFrame
    frequencies: pd.DataFrame

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Reads the tables of a finished run.

        Raises:
            InputError: the folder holds no finished run.
        """
        folder = Path(folder)
        return cls._read(folder / "table.parquet", folder / "frequencies.parquet")

    @classmethod
    def published(cls, name: str, root: Path) -> "Results":
        """Reads what `publish` wrote under the same name.

        Raises:
            InputError: nothing was published under that name.
        """
        return cls._read(*_published_paths(name, root))

    def publish(self, name: str, root: Path) -> None:
        """Writes the tables that are committed: `root`/tables/NAME.csv and, beside it, the firing
        rates of all latents."""
        table, frequencies = _published_paths(name, root)
        table.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, self.table)
        write_table(frequencies, self.frequencies)

    @classmethod
    def _read(cls, table: Path, frequencies: Path) -> "Results":
        try:
            read = pd.read_csv if table.suffix == ".csv" else pd.read_parquet
            found = cls(read(table), pd.read_parquet(frequencies))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{table.parent}: no tables of a finished run ({reason})") from None
        for path, columns, needed in (
            (table, found.table, ("arm", "series", "setting", "status", *MEASURED)),
            (frequencies, found.frequencies, ("arm", "eval_set", "frequency")),
        ):
            if absent := [name for name in needed if name not in columns]:
                raise InputError(f"{path}: no table of a finished run (no column {absent[0]!r})")
        return found


def _published_paths(name: str, root: Path) -> tuple[Path, Path]:
    tables = root / "tables"
    return tables / f"{name}.csv", tables / f"{name}_frequencies.parquet"


def published_names(root: Path) -> list[str]:
    """The ablations whose tables stand under `root`."""
    return [name for name in names() if _published_paths(name, root)[0].exists()]


@dataclass(frozen=True)
class Ablation:
    """A loaded ablation file; see the module's docstring."""

    name: str
    question: str
    presets: Mapping[str, Preset]
    arms: Callable[[Preset], list[Arm]]
    figures: Figures
    answer: Callable[[pd.DataFrame], str]

    def preset(self, name: str | None) -> Preset:
        """A preset by name; None: the first.

        Raises:
            InputError: unknown name.
        """
        name = next(iter(self.presets), "") if name is None else name
        if name not in self.presets:
            raise InputError(
                f"{self.name}: unknown preset {name!r}; it has {', '.join(self.presets)}"
            )
        return self.presets[name]


def names() -> list[str]:
    """The built-in ablations: the modules of the package but for parts of theirs, `_parts`."""
    package = importlib.import_module("ablations")
    found = (module.name for module in iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def load(spec: str) -> Ablation:
    """An ablation by the name of a built-in or the path of a Python file.

    Raises:
        InputError: unknown name, no such file, or a definition is missing in it.
    """
    if spec.endswith(".py"):
        module = load_file(Path(spec))
    elif spec in names():
        module = importlib.import_module(f"ablations.{spec}")
    else:
        raise InputError(
            f"unknown ablation {spec!r}; known: {', '.join(names())}, or the path of a .py file"
        )
    needed = ("PRESETS", "arms", "figures", "answer")
    if absent := [name for name in needed if not hasattr(module, name)]:
        raise InputError(
            f"{spec}: an ablation must define {', '.join(needed)}; {absent[0]} is missing"
        )
    if not module.PRESETS:
        raise InputError(f"{spec}: PRESETS is empty; define at least one")
    question = (module.__doc__ or "").strip()
    return Ablation(Path(spec).stem, question, *(getattr(module, name) for name in needed))


__all__ = ["Ablation", "Data", "Preset", "Results", "load", "names"]
