"""Slots: annotated class attributes that each object can give another value."""

from collections.abc import Mapping
from typing import Any

from sae_bench.annotations import annotations, fit, is_class_variable
from sae_bench.errors import InputError


class Slotted:
    """A class whose annotated attributes with a value are slots: name, type and default at once.
    Class variables and properties are none, nor is what is annotated without a value."""

    @classmethod
    def slot_types(cls) -> dict[str, Any]:
        """The annotation of every slot, those of bases first."""
        return {
            name: hint
            for name, hint in annotations(cls, Slotted).items()
            if not is_class_variable(hint)
            and hasattr(cls, name)
            and not isinstance(getattr(cls, name), property)
        }

    @classmethod
    def slot_defaults(cls) -> dict[str, Any]:
        """Every slot of the class with its default value."""
        return {name: getattr(cls, name) for name in cls.slot_types()}

    @classmethod
    def resolve(cls, slots: Mapping[str, Any]) -> dict[str, Any]:
        """`slots` completed by the defaults.

        Raises:
            InputError: unknown slot, or a value that is not what its annotation says.
        """
        types = cls.slot_types()
        for name in slots:
            if name not in types:
                here = hasattr(cls, name) or name in annotations(cls, Slotted)
                advice = "; annotate it in the class, with a default, to make it one" * here
                known = ", ".join(types)
                raise InputError(
                    f"{cls.__name__}: unknown argument {name!r}; it takes {known}{advice}"
                )
        values = {**cls.slot_defaults(), **slots}
        return {
            name: fit(value, types[name], f"{cls.__name__}.{name}")
            for name, value in values.items()
        }

    @property
    def slots(self) -> dict[str, Any]:
        """The values of all slots of this object."""
        return {name: getattr(self, name) for name in self.slot_types()}
