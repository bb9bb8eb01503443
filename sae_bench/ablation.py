"""Ablations: one file a question, found by name or by path.

An ablation is a Python file whose docstring states the question and which defines

    PRESETS: dict[str, Preset]                settings it can be run at; the first is the default
    arms(preset) -> list[Arm]                 the grid
    figures(results) -> dict[str, Figure]     the plots, by file name
    answer(results) -> str                    the verdict in words and numbers

if the run's table does not say it all,

    FURTHER: dict[str, Callable[[Finished], DataFrame]]
                                              tables of what else is measured on the trained SAEs

if its answer rests on differences between arms,

    contrasts(results) -> DataFrame           those differences, one a row, with their intervals

if figures need words beside them,

    CAPTIONS: dict[str, str]                  what is drawn, by file name

and, if there are published figures to hold its own against,

    reference() -> dict[str, Figure]          those figures, redrawn from their own points
"""

import importlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from sae_bench.loading import load_sae
from sae_bench.models import DTYPES
from sae_bench.modules import load_file
from sae_bench.recipe import Recipe
from sae_bench.results import Results
from sae_bench.sae import SparseAutoencoder
from sae_bench.shapes import SHAPES
from sae_bench.source import ActivationSource
from sae_bench.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Origin(Component):
    """Where the activations of a preset come from."""

    @property
    def lm_tokens(self) -> int:
        """Tokens of the language-model evaluation."""
        return 0

    @property
    def width(self) -> int | None:
        """d_in, where it is known before anything is loaded. Here: it is not."""
        return None

    def stored(self, d_in: int) -> int:
        """Bytes of its activations on disk, held-out ones included. Here: none."""
        return 0

    def streamed(self, tokens: int) -> float:
        """FLOP of the language model while a wave of arms sees `tokens` tokens. Here: none, as the
        activations were stored before."""
        return 0.0

    @abstractmethod
    def cache(self, device: str | None = None) -> ActivationCache:
        """The training activations, or a sample of them, with a held-out side."""

    def source(self, cache: ActivationCache) -> ActivationSource:
        """What SAEs are trained on, in the units of `cache`, its own. Here: that cache."""
        return cache

    def caches(
        self, wanted: Iterable["Origin"], device: str | None = None
    ) -> dict["Origin", ActivationCache]:
        """Its own cache, and those of `wanted` that the same pass makes. Here: its own."""
        return {self: self.cache(device)}


@dataclass(frozen=True)
class Data(Origin):
    """Activations of a language model; arguments as in `ActivationCache.build`.

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

    @property
    def width(self) -> int | None:
        """That of the site in a model of known shape."""
        shape = SHAPES.get(self.model)
        return shape.width(self.site) if shape else None

    def stored(self, d_in: int) -> int:
        """Bytes of both sides in its dtype."""
        return (self.tokens + self.held_out_tokens) * d_in * DTYPES[self.dtype].itemsize

    def cache(self, device: str | None = None) -> ActivationCache:
        """Builds the cache, or finds it."""
        return self.caches([], device)[self]

    def caches(
        self, wanted: Iterable[Origin], device: str | None = None
    ) -> dict[Origin, ActivationCache]:
        """Those of `wanted` that differ from it in the site alone come out of its pass."""
        others = (each for each in wanted if isinstance(each, Data))
        together = [self, *(each for each in others if each.replace(site=self.site) == self)]
        built = ActivationCache.build(
            self.model,
            sorted({each.site for each in together}),
            self.text,
            self.tokens,
            held_out_tokens=self.held_out_tokens,
            context=self.context,
            dtype=self.dtype,
            model_dtype=self.model_dtype,
            device=device,
        )
        return {each: built[each.site] for each in together}


@dataclass(frozen=True)
class Preset(Component):
    """A scale at which an ablation is run.

    Args:
        data: the activations.
        d_sae: number of latents.
        recipe: how arms are trained, unless the ablation tunes an arm's own.
    """

    data: Origin
    d_sae: int
    recipe: Recipe

    def parts(self) -> Mapping[str, "Preset"]:
        """What an ablation falls into, by name: grids on activations of their own, or such as are
        run one after the other. Here: the one part without a name."""
        return {"": self}

    def measuring(self, sites: Sequence[str]) -> "Preset":
        """The preset for finished SAEs of these sites, beside which it may train others. Here:
        itself, with the sites it has.

        Raises:
            InputError: it cannot measure these together.
        """
        return self

    def evaluation(self) -> Mapping[str, Origin]:
        """Evaluation sets, by name: the held-out sides of these. None: that of its own data."""
        return {}

    def scaled_by(self) -> Origin:
        """Activations whose scale s normalises those it is trained on. Here: these themselves;
        parts that name the same ones are trained in the same units."""
        return self.data


@dataclass(frozen=True)
class Finished:
    """A part of a run that has been trained and measured.

    Args:
        preset: of the part.
        table: of its run; `arm` names the arms.
        folder: of its run.
        cache: that it was trained on, or a sample of it (`Origin.cache`), in the units of training;
            its held-out side is `cache.held_out`.
        evaluation: its evaluation sets, by name; none where that side is the only one.
    """

    preset: Preset
    table: pd.DataFrame
    folder: Path
    cache: ActivationCache
    evaluation: Mapping[str, ActivationCache] = field(default_factory=dict)

    def sae(self, arm: str) -> SparseAutoencoder:
        """A trained SAE, which takes raw activations."""
        return load_sae(self.folder / "arms" / arm / "sae")

    def history(self, arm: str) -> pd.DataFrame:
        """Its training, a row a logged step: step, tokens, lr, l0, fvu, terms of the loss."""
        return pd.read_parquet(self.folder / "arms" / arm / "training.parquet")


@dataclass(frozen=True)
class Ablation:
    """A loaded ablation file; see the module's docstring."""

    name: str
    question: str
    presets: Mapping[str, Preset]
    arms: Callable[[Preset], list[Arm]]
    figures: Callable[[Results], "dict[str, Figure]"]
    answer: Callable[[Results], str]
    further: Mapping[str, Callable[[Finished], pd.DataFrame]]
    captions: Mapping[str, str] = field(default_factory=dict)
    contrasts: Callable[[Results], pd.DataFrame] | None = None
    reference: Callable[[], "dict[str, Figure]"] | None = None

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
    given = [getattr(module, name) for name in needed]
    given += [getattr(module, name, {}) for name in ("FURTHER", "CAPTIONS")]
    given += [getattr(module, name, None) for name in ("contrasts", "reference")]
    return Ablation(Path(spec).stem, question, *given)


__all__ = ["Ablation", "Data", "Finished", "Origin", "Preset", "load", "names"]
