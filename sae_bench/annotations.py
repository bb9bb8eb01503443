"""Values held against annotations: the one check that fields of components, slots and arguments of
public functions go through."""

import functools
import inspect
import sys
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

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
P = ParamSpec("P")
R = TypeVar("R")

SEEDS = range(-(2**63), 2**64)
"""What torch's generators take."""


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


def typed(*own: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function: before it begins, its arguments are held against their annotations.

    Args:
        own: names of arguments that the function has better words for itself.

    Raises:
        InputError: in calls, as `fit`. (Arguments that are missing or unknown stay Python's.)
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        called = function.__qualname__.removesuffix(".__init__")

        @functools.cache  # at the first call, when all names are known
        def hints() -> dict[str, Any]:
            names = [name for name in signature.parameters if name not in own]
            found = inspect.get_annotations(function)
            module = sys.modules[function.__module__]
            return {
                name: _resolved(found[name], module)
                if isinstance(found[name], str)
                else found[name]
                for name in names
                if name in found
            }

        @functools.wraps(function)
        def checking(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            for name, hint in hints().items():
                if name in bound.arguments:
                    place = f"{called}: {name}"
                    bound.arguments[name] = fit(bound.arguments[name], hint, place)
            return function(*bound.args, **bound.kwargs)

        return checking

    return decorated


def fit_seed(value: Any, place: str) -> int:
    """A seed as an integer.

    Raises:
        InputError: no integer, or none of 64 bits.
    """
    seed: int = fit(value, int, place)
    if seed not in SEEDS:
        raise InputError(f"{place}: a seed is an integer of 64 bits, got {seed:.3e}")
    return seed


def shown(value: Any) -> str:
    """A value, short and in one line, as messages show it."""
    if isinstance(value, type):
        return f"the class {value.__name__} (write {value.__name__}(...))"
    return f"{' '.join(repr(value).split()):.60}"


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


def _resolved(hint: str, owner: Any) -> Any:
    """What a text means in a class, or in a module."""
    module = sys.modules.get(getattr(owner, "__module__", owner.__name__))
    try:
        return eval(hint, vars(module) if module else {}, dict(vars(owner)))
    except Exception:  # a name that only its writer's scope or type checker knows
        return Any
