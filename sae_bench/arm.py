"""Arms: the specification of one trained cell, and grids of them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sae_bench.annotations import fit, fit_seed
from sae_bench.components import Component, digest, family, find_class, to_plain, walk
from sae_bench.errors import InputError
from sae_bench.recipe import Recipe
from sae_bench.registry import architecture
from sae_bench.sae import SparseAutoencoder
from sae_bench.user_code import source_digest


@dataclass(frozen=True)
class Arm:
    """One SAE to train: architecture, width, slots, seed and recipe.

    Args:
        architecture: the class.
        d_sae: number of latents.
        recipe: how it is trained.
        seed: draws the initial weights (the recipe's `data_seed` draws the order of the data).
        slots: values of the architecture's slots that differ from its defaults.
    """

    architecture: type[SparseAutoencoder]
    d_sae: int
    recipe: Recipe
    seed: int = 0
    slots: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = field(init=False, repr=False, compare=False)
    """Hash of the code of those classes that are the user's own, as it was when the arm was made;
    None if there are none."""

    def __post_init__(self) -> None:
        if not (
            isinstance(self.architecture, type) and issubclass(self.architecture, SparseAutoencoder)
        ):
            raise InputError(
                f"an arm needs a subclass of SparseAutoencoder, got {self.architecture!r:.60}"
            )
        for name, hint in (("d_sae", int), ("recipe", Recipe), ("slots", Mapping)):
            fitted = fit(getattr(self, name), hint, f"{self.name}: {name}")
            object.__setattr__(self, name, fitted)
        object.__setattr__(self, "seed", fit_seed(self.seed, f"{self.name}: seed"))
        if self.d_sae < 1:
            raise InputError(f"{self.name}: d_sae must be a positive integer, got {self.d_sae}")
        object.__setattr__(self, "slots", MappingProxyType(self.architecture.resolve(self.slots)))
        object.__setattr__(self, "source", source_digest(self.classes))
        if self.objection is None:
            self.slots["activation"].parameters(self.d_sae)  # k larger than d_sae fails here

    @property
    def name(self) -> str:
        """The architecture's name in tables and legends: its class name without the ending SAE."""
        return self.architecture.__name__.removesuffix("SAE")

    @property
    def classes(self) -> list[type]:
        """The architecture and the classes of all components in its slots, nested ones included."""
        return [self.architecture, *dict.fromkeys(type(part) for part in walk(self.slots))]

    @property
    def objection(self) -> str | None:
        """Why this cell has no meaning and is skipped, or None."""
        return self.architecture.objection(self.slots)

    @property
    def ends_warm(self) -> bool:
        """Whether warm-ups and decay fit into the run; without a penalty, its warm-up does not
        matter."""
        recipe = self.recipe
        if not self.slots["penalty"].coefficient:
            recipe = recipe.replace(penalty_warmup=0)
        return recipe.ends_warm

    def build(self, d_in: int) -> SparseAutoencoder:
        """The untrained SAE."""
        return self.architecture(d_in, self.d_sae, seed=self.seed, **self.slots)

    def record(self) -> dict[str, Any]:
        """JSON-ready description of everything that decides the result but the data; for classes
        of the user's own that includes a hash of their code."""
        record = {
            "architecture": self.architecture.__name__,
            "d_sae": self.d_sae,
            "seed": self.seed,
            "slots": to_plain(dict(self.slots)),
            "recipe": self.recipe.record(),
        }
        return {**record, "source": self.source} if self.source else record

    @property
    def series(self) -> str:
        """The line in a figure that the arm belongs to: its name, and the kinds of those slots
        that are of another kind than the architecture's defaults."""
        defaults = self.architecture.slot_defaults()
        changed = [
            value.kind if isinstance(value, Component) else f"{name}={value}"
            for name, value in self.slots.items()
            if _kind(value) != _kind(defaults[name])
        ]
        return " + ".join([self.name, *changed])

    @property
    def setting(self) -> str:
        """Hash of everything but the seeds: arms that differ in their seeds alone share it."""
        record = {**self.record(), "seed": 0}
        return digest({**record, "recipe": self.recipe.replace(data_seed=0).record()}, 8)

    @property
    def key(self) -> str:
        """Name of the arm's folder: readable, unique by content."""
        return f"{self.name.lower()}-{digest(self.record())}"

    def columns(self) -> dict[str, Any]:
        """What the result table says of the arm."""
        return {
            "arm": self.key,
            "series": self.series,
            "setting": self.setting,
            "architecture": self.name,
            **slot_columns(self.slots, self.d_sae),
            "d_sae": self.d_sae,
            "seed": self.seed,
            "lr": self.recipe.lr,
            "threshold_lr": self.recipe.threshold_lr or self.recipe.lr,
            "batch_size": self.recipe.batch_size,
            "data_seed": self.recipe.data_seed,
            "train_tokens": self.recipe.steps * self.recipe.batch_size,
        }


def check_names(arms: Iterable[Arm]) -> None:
    """Whether SAEs of these arms can be loaded again, for which classes are found by their names.

    Raises:
        InputError: a name means two classes, or one that was defined again with other code.
    """
    owners = {cls: arm.key for arm in reversed(list(arms)) for cls in arm.classes}
    for cls, key in owners.items():
        if issubclass(cls, Component):
            found: type = find_class(family(cls), cls.__name__, key)
        else:
            found = architecture(cls.__name__, key)
        if found is not cls and source_digest([found]) != source_digest([cls]):
            raise InputError(
                f"{key}: its {cls.__name__} was defined again with other code, and SAEs are loaded "
                "by the newest class of a name; make the arms from that one, or give each its own "
                f"name ({cls.__name__}.__name__ = ...)"
            )


def slot_columns(slots: Mapping[str, Any], d_sae: int) -> dict[str, Any]:
    """What the result table says of the slots of an SAE with `d_sae` latents."""
    activation, penalty, kernel = (slots[s] for s in ("activation", "penalty", "kernel"))
    uses_kernel = penalty.through_step or activation.parameters(d_sae)
    extra = {
        name: value.label if isinstance(value, Component) else value
        for name, value in slots.items()
        if name not in ("activation", "penalty", "kernel")
    }
    return {
        "activation": activation.label,
        "penalty": penalty.label_without("coefficient"),
        "coefficient": penalty.coefficient,
        "kernel": kernel.label if uses_kernel else "",
        **extra,
    }


def _kind(value: Any) -> Any:
    return value.kind if isinstance(value, Component) else value


def grid(
    architecture: type[SparseAutoencoder], *, recipe: Recipe | Sequence[Recipe], **axes: Any
) -> list[Arm]:
    """All combinations of the given values: lists, tuples and ranges are axes, anything else is
    one value. (A slot whose value is itself a tuple goes into a list.)

    `grid(JumpReLUSAE, d_sae=[4096], penalty=[L0(1e-3), L0(3e-3)], seed=range(3), recipe=recipe)`
    makes 6 arms. Cells without meaning are kept; `run` records them as skipped with the reason.

    Raises:
        InputError: unknown slot, value of the wrong type, no value on an axis, d_sae missing.
    """
    axes = {"seed": 0, **axes, "recipe": recipe}
    if "d_sae" not in axes:
        raise InputError(f"grid({architecture.__name__}): d_sae is missing, e.g. d_sae=4096")
    values = {
        name: list(value) if isinstance(value, list | tuple | range) else [value]
        for name, value in axes.items()
    }
    if empty := [name for name, options in values.items() if not options]:
        raise InputError(f"grid({architecture.__name__}): no value given for {empty[0]}")
    arms = []
    for combination in itertools.product(*values.values()):
        cell = dict(zip(values, combination, strict=True))
        fixed = {name: cell.pop(name) for name in ("d_sae", "seed", "recipe")}
        arms.append(Arm(architecture, slots=cell, **fixed))
    return arms
