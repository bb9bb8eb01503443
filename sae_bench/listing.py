"""What there is: the text of `sae-bench list`."""

import argparse
import textwrap
from collections.abc import Iterable
from types import ModuleType

from sae_bench import ablation, activations, decoders, estimators, kernels, penalties, registry
from sae_bench.user_code import OURS

FAMILIES: dict[str, tuple[ModuleType, type]] = {
    "activations": (activations, activations.Activation),
    "penalties": (penalties, penalties.Penalty),
    "kernels": (kernels, kernels.Kernel),
    "estimators": (estimators, estimators.Estimator),
    "decoders": (decoders, decoders.Decoder),
}
"""Heading -> the module that holds the classes, and their base."""


def show(arguments: argparse.Namespace) -> None:
    """list: architectures, components and ablations, each with the beginning of its docstring."""
    _section("architectures", registry.architectures().values())
    for heading, (module, base) in FAMILIES.items():
        _section(heading, _ready(module, base))
    print("ablations")
    for name in ablation.names():
        loaded = ablation.load(name)
        print(f"  {name:19} {_beginning(loaded.question)} (presets: {', '.join(loaded.presets)})")


def _ready(module: ModuleType, base: type) -> list[type]:
    """The classes of a module that are no bases of others of this project."""
    found = [
        cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, base)
    ]
    return [
        cls
        for cls in found
        if not any(below.__module__.split(".")[0] in OURS for below in cls.__subclasses__())
    ]


def _section(heading: str, classes: Iterable[type]) -> None:
    print(heading)
    for cls in sorted(classes, key=lambda cls: cls.__name__):
        print(f"  {cls.__name__:19} {_beginning(cls.__doc__)}")


def _beginning(text: str | None) -> str:
    first = (text or "").strip().split("\n\n")[0]
    return textwrap.shorten(first, 100, placeholder=" ...")
