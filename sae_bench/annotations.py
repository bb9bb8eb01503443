"""Values held against annotations: the one check that fields of components and slots go through."""

import inspect
import sys
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import numpy as np

from sae_bench.errors import InputError, a

WORDS = {
    float: "a number",
    int: "an integer",
    bool: "True or False",
    str: "text",
    NoneType: "None",
    None: "None",
}
_UNFIT = object()


def annotations(cls: type, base: type = object) -> dict[str, Any]:
    """What `cls` and those of its bases that derive from `base` annotate, bases first. Annotations
    in quotes are looked up in their module; one that is not found there counts as `Any`, which
    says nothing new where a base has said more. A class variable stays one in subclasses."""
    found: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if issubclass(owner, base):
            for name, hint in inspect.get_annotations(owner).items():
                hint = _resolved(hint, owner) if isinstance(hint, str) else hint
                if name not in found or not (hint is Any or is_class_variable(found[name])):
                    found[name] = hint
    return found


def is_class_variable(hint: Any) -> bool:
    """Whether an annotation is `ClassVar`, with or without a type."""
    return hint is ClassVar or get_origin(hint) is ClassVar


def fit(value: Any, hint: Any, place: str) -> Any:
    """`value` as `hint` wants it: numpy scalars become Python's, lists tuples where a tuple is due.

    An integer will do for a number, a boolean will not. What is inside containers other than
    tuples is not looked at.

    Raises:
        InputError: one line: the place, what was expected, what was given.
    """
    if (fitted := _fitted(value, hint)) is _UNFIT:
        raise InputError(f"{place}: expected {_expected(hint)}, got {shown(value)}")
    return fitted


def shown(value: Any) -> str:
    """A value, short, as messages show it."""
    if isinstance(value, type):
        return f"the class {value.__name__} (write {value.__name__}(...))"
    return f"{value!r:.60}"


def _fitted(value: Any, hint: Any) -> Any:
    """The value, converted, or `_UNFIT`."""
    if isinstance(value, np.generic):
        value = value.item()
    if hint is Any:
        return value
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        fitting = (_fitted(value, option) for option in options)
        return next((fitted for fitted in fitting if fitted is not _UNFIT), _UNFIT)
    if origin is tuple:
        return _fitted_tuple(value, options)
    if origin is Literal:
        return value if value in options else _UNFIT
    if (hint is int or hint is float) and isinstance(value, bool):
        return _UNFIT
    wanted = {float: int | float, None: NoneType}.get(hint, origin or hint)
    if isinstance(wanted, type | UnionType):
        return value if isinstance(value, wanted) else _UNFIT
    return value


def _fitted_tuple(value: Any, options: tuple[Any, ...]) -> Any:
    if not isinstance(value, tuple | list):
        return _UNFIT
    hints = [options[0]] * len(value) if options[1:] == (...,) else list(options)
    if len(hints) != len(value):
        return _UNFIT
    items = tuple(_fitted(item, hint) for item, hint in zip(value, hints, strict=True))
    return _UNFIT if any(item is _UNFIT for item in items) else items


def _expected(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_expected(option) for option in options)
    if origin is tuple:
        if options[1:] == (...,):
            return f"a tuple, each item {_expected(options[0])}"
        return f"a tuple ({', '.join(_expected(option) for option in options)})"
    if origin is Literal:
        return " or ".join(map(repr, options))
    if hint in WORDS:
        return WORDS[hint]
    name = getattr(origin or hint, "__name__", str(hint))
    return a(name)


def _resolved(hint: str, owner: type) -> Any:
    module = sys.modules.get(owner.__module__)
    try:
        return eval(hint, vars(module) if module else {}, dict(vars(owner)))
    except Exception:  # a name that only its writer's scope or type checker knows
        return Any
