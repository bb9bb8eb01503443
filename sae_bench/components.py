"""Components: frozen dataclasses that are configuration, code and plot label at once.

A kernel, a penalty, an activation, a context policy or a recipe is an immutable object that holds
no tensors. Whatever is written down about it (run records, saved SAEs, cache names) is derived
from its fields, so a record can never omit what was used.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

from sae_bench.annotations import annotations, fit, is_class_variable
from sae_bench.errors import InputError, a

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Component(ABC):  # noqa: B024 (each base below it says what is abstract)
    """Base of all components. A subclass is a frozen dataclass whose fields are plain values
    (numbers, strings, booleans, None, tuples of them) or other components.

    Fields are held against their annotations before a `__post_init__` of the subclass checks their
    ranges; numpy scalars become Python's.

    Raises:
        InputError: a field of the wrong type; a subclass that is no dataclass although it
            annotates fields, or lacks something that its base asks for.
    """

    units: ClassVar[Mapping[str, int]] = {}
    """Power of the activation scale in which each dimensional field is expressed."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuses a class that is not complete."""
        if gap := _gap(cls):
            raise InputError(f"{cls.__name__}: {gap}")
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if own := cls.__dict__.get("__post_init__"):
            cls.__post_init__ = _after_types(own)  # type: ignore[method-assign, assignment]

    def __post_init__(self) -> None:
        hints = annotations(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            fitted = fit(value, hints[field.name], f"{type(self).__name__}.{field.name}")
            if fitted is not value:
                object.__setattr__(self, field.name, fitted)

    @property
    def label(self) -> str:
        """Short text for legends and tables: the class name and its fields' values."""
        return self.label_without()

    def label_without(self, *hidden: str) -> str:
        """The label with some fields left out (those that have a column or axis of their own)."""
        fields = [field.name for field in dataclasses.fields(self) if field.name not in hidden]
        shown = ", ".join(label_of(getattr(self, name)) for name in fields)
        return f"{type(self).__name__}({shown})" if shown else type(self).__name__

    @property
    def kind(self) -> str:
        """What sort of thing it is, numbers aside: arms of one kind make one line in a figure. The
        class name, and in brackets the kinds of those parts (components, switches, words) that are
        of another kind than by default."""
        changed = []
        for field in dataclasses.fields(self):
            value = kind_of(getattr(self, field.name))
            if value is not None and value != kind_of(field.default):
                shown = isinstance(getattr(self, field.name), bool | str)
                changed.append(f"{field.name}={value}" if shown else value)
        return f"{type(self).__name__}({', '.join(changed)})" if changed else type(self).__name__

    def record(self) -> dict[str, Any]:
        """JSON-ready description from which `from_record` makes an equal object."""
        fields = {
            field.name: to_plain(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        return {"class": type(self).__name__, **fields}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def rescaled(self, s: float) -> Self:
        """The same component for activations multiplied by `s`: each field times s^units[field],
        components inside likewise (thresholds and bandwidths scale as s, the coefficient of L0 as
        s^2, of L1 as s)."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Component):
                changes[field.name] = value.rescaled(s)
            elif field.name in self.units and value is not None:
                changes[field.name] = value * s ** self.units[field.name]
        return self.replace(**changes)


C = TypeVar("C", bound=Component)


def _after_types(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A `__post_init__` that runs when the types are known to be right."""

    @functools.wraps(check)
    def both(self: Component) -> None:
        Component.__post_init__(self)
        check(self)

    return both


@functools.cache
def _gap(cls: type[Component]) -> str | None:
    """What a subclass still owes before it can have instances, or None."""
    hints = annotations(cls, Component)
    constants = {name for name, hint in hints.items() if is_class_variable(hint)}
    fields = {field.name for field in dataclasses.fields(cls)}
    if loose := [name for name in hints if name not in constants | fields]:
        return f"{', '.join(loose)} is no field yet: write @dataclass(frozen=True) above the class"
    methods = [_signature(cls, name) for name in sorted(cls.__abstractmethods__)]
    missing = [*methods, *(name for name in hints if name in constants and not hasattr(cls, name))]
    return f"define {', '.join(missing)}" if missing else None


def _signature(cls: type, name: str) -> str:
    """`value(latents, W_dec)`; a property by its name alone."""
    method = getattr(cls, name)
    if not callable(method):
        return name
    return f"{name}({', '.join(list(inspect.signature(method).parameters)[1:])})"


def kind_of(value: Any) -> str | None:
    """The kind of a component, or of several; a switch or a word as it is; None for a number."""
    if isinstance(value, Component):
        return value.kind
    if isinstance(value, tuple | list):
        kinds = [kind for item in value if (kind := kind_of(item)) is not None]
        return "+".join(kinds) or None
    return str(value) if isinstance(value, bool | str) else None


def walk(value: Any) -> Iterator[Component]:
    """A component and those inside it, or those in a container."""
    if isinstance(value, Component):
        yield value
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return
    for item in value:
        yield from walk(item)


def label_of(value: Any) -> str:
    """A component's label, or a plain value as labels show it."""
    if isinstance(value, Component):
        return value.label
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_plain(value: Any) -> Any:
    """JSON-ready form of a component, or of a container of components and plain values."""
    if isinstance(value, Component):
        return value.record()
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_record(base: type[C], record: Any, where: str = "record") -> C:
    """The component that `record` describes.

    Args:
        base: class that the result must be an instance of.
        record: what `Component.record` returned, possibly after a trip through JSON.
        where: name of the file or key, for error messages.

    Raises:
        InputError: the class is unknown or not a `base`, or a field is missing, unknown or wrong.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("class"), str):
        raise InputError(f"{where}: expected the record of {a(base.__name__)}, got {record!r:.80}")
    cls = find_class(base, record["class"], where)
    names = {field.name for field in dataclasses.fields(cls)}
    given = {key: value for key, value in record.items() if key != "class"}
    if unknown := sorted(set(given) - names):
        raise InputError(
            f"{where}: {cls.__name__} has no field {unknown[0]!r} (it has {sorted(names)})"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    values = {
        key: from_plain(value, defaults[key], f"{where}.{key}") for key, value in given.items()
    }
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError as error:
        raise InputError(f"{where}: {cls.__name__}: {error}") from None


def from_plain(value: Any, default: Any, where: str) -> Any:
    """What `to_plain` was given, as far as JSON can tell; lists become tuples.

    Args:
        value: JSON-ready.
        default: what stands in the same place by default: a component is of one family with it.
        where: name of the file or key, for error messages.

    Raises:
        InputError: as `from_record`.
    """
    if isinstance(value, Mapping):
        base = family(type(default)) if isinstance(default, Component) else Component
        return from_record(base, value, where)
    if isinstance(value, list):
        return tuple(from_plain(item, None, where) for item in value)
    return value


def subclasses(base: type[T]) -> Iterator[type[T]]:
    """Every live subclass of `base`, itself excluded, in order of definition."""
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


def family(cls: type[Component]) -> type[Component]:
    """The base that a component's class is one of: `Penalty` for `L1`. Names are unique in it."""
    return next(
        base for base in reversed(cls.__mro__) if issubclass(base, Component) and base != Component
    )


def find_class(base: type[T], name: str, where: str = "registry") -> type[T]:
    """The class called `name` among `base` and its subclasses.

    A class that was defined again at the same place (a notebook cell run twice) replaces its
    older self; two different classes under one name are an error.

    Raises:
        InputError: no class or more than one class has that name.
    """
    candidates = [base, *subclasses(base)]
    found = {(cls.__module__, cls.__qualname__): cls for cls in candidates if cls.__name__ == name}
    if not found:
        shown = [cls for cls in candidates[1:] if not inspect.isabstract(cls)] or candidates
        known = sorted({cls.__name__ for cls in shown if not cls.__name__.startswith("_")})
        raise InputError(
            f"{where}: unknown {base.__name__} {name!r}; known: {', '.join(known)} "
            "(import the module that defines yours first; in commands: --import FILE_OR_MODULE)"
        )
    if len(found) > 1:
        places = " and ".join(f"{module}.{qualname}" for module, qualname in sorted(found))
        raise InputError(f"{where}: {name!r} is defined twice, in {places}; rename one of them")
    return next(iter(found.values()))


def digest(value: Any, length: int = 12) -> str:
    """Hexadecimal hash of a JSON-ready value or component: equal values (1 and 1.0), equal
    digests."""
    text = json.dumps(_canonical(to_plain(value)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
