"""The code of the user's own classes: what was computed with a class belongs to its code.

Text counts without docstrings, comments and layout. So do the values that it hangs on: those in
closures, in defaults of arguments and of the class itself, and the functions, classes and constants
that it names, followed from one to the next through modules of the user's own.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import symtable
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from sae_bench.components import Component, digest

OURS = ("sae_bench", "architectures")
PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum)
CODE = (type, FunctionType, MethodType)


def source_digest(classes: Iterable[type]) -> str | None:
    """Hash of the code of those classes that are neither this project's nor a library's, their
    bases included; None if there are none.

    Values that change while a program runs (a global counter) count as they are now.
    """
    classes = list(classes)
    code = _Code({_top(cls) for cls in classes})
    for cls in classes:
        code.add(cls)
    return digest(sorted(code.found)) if code.found else None


class _Text(NamedTuple):
    """The normalised text of a class or function, the names in it that come from outside, and those
    of them that stand before a dot, with what follows (`helpers.scale`)."""

    text: str
    names: frozenset[str] = frozenset()
    dotted: frozenset[str] = frozenset()


_TEXTS: WeakKeyDictionary[Any, _Text] = WeakKeyDictionary()
"""Read once, when a class is first used: a file that is edited later does not change what runs."""


class _Code:
    """What is found on the way through code.

    Args:
        packages: top-level packages of the classes given: the user's, wherever they are installed.
    """

    def __init__(self, packages: set[str]) -> None:
        self.found: set[str] = set()
        self._packages = packages
        self._seen: dict[int, Any] = {}

    def add(self, thing: Any) -> None:
        """A class with its bases, or a function; once, and if it is the user's."""
        for each in inspect.getmro(thing) if isinstance(thing, type) else [inspect.unwrap(thing)]:
            if id(each) not in self._seen and self._is_users(each):
                self._seen[id(each)] = each
                self._add_text(each)
                self._add_values(each)

    def _is_users(self, thing: Any) -> bool:
        top = _top(thing)
        if top in (*OURS, "builtins", "torch") or top in sys.stdlib_module_names:
            return False
        file = getattr(sys.modules.get(top), "__file__", None) or ""
        installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
        return not installed or top in self._packages

    def _add_text(self, thing: Any) -> None:
        code = _TEXTS.get(thing)
        if code is None:
            code = _TEXTS[thing] = _text(thing)
        self.found.add(f"{thing.__qualname__}: {code.text}")
        scope = _scope(thing)
        for name in code.names & scope.keys():
            self._note(thing, name, scope[name])
        for path in code.dotted:
            value = scope.get(path.partition(".")[0])
            for attribute in path.split(".")[1:]:
                if isinstance(value, ModuleType) and self._is_users(value):
                    value = getattr(value, attribute, None)
                    self._note(thing, path, value)

    def _add_values(self, thing: Any) -> None:
        """Defaults of arguments, and attributes of a class that are no functions."""
        own = vars(thing) if isinstance(thing, type) else {"": thing}
        for name, value in own.items():
            functions = list(_functions(value))
            for function in functions:
                if defaults := (*(function.__defaults__ or ()), function.__kwdefaults__ or {}):
                    self._note(function, "defaults", defaults)
            if not functions and not name.startswith(("__", "_abc_")):
                self._note(thing, name, value)

    def _note(self, owner: Any, name: str, value: Any) -> None:
        if not isinstance(value, ModuleType):
            self.found.add(f"{owner.__qualname__}: {name} = {self._described(value)}")

    def _described(self, value: Any, depth: int = 8) -> str:
        """A text that equal values share, whatever their address; of objects of other kinds, the
        name of their class."""
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, CODE):
            self.add(value.__func__ if isinstance(value, MethodType) else value)
            return value.__qualname__
        name, parts = type(value).__qualname__, _parts(value) if depth else None
        if isinstance(value, Component):
            self.add(type(value))
        if parts is None:
            return name
        shown = [self._described(part, depth - 1) for part in parts]
        unordered = isinstance(value, set | frozenset | Mapping)
        return f"{name}({', '.join(sorted(shown) if unordered else shown)})"


def _parts(value: Any) -> Iterable[Any] | None:
    """What an object consists of, as far as it can be told."""
    if isinstance(value, tuple | list | set | frozenset):
        return value
    if isinstance(value, Mapping):
        return value.items()
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, nn.Module):
        return value.state_dict().items()
    if isinstance(value, Tensor | np.ndarray | np.generic):
        array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return [str(value.dtype), tuple(value.shape), content]
    return None


def _top(thing: Any) -> str:
    """The top-level package of a class, function or module."""
    name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    return str(name).partition(".")[0]


def _functions(value: Any) -> Iterator[FunctionType]:
    """The functions behind an attribute of a class: methods, properties, decorated ones."""
    found = [value]
    if isinstance(value, property | staticmethod | classmethod | functools.cached_property):
        names = ("fget", "fset", "fdel", "func", "__func__")
        found = [getattr(value, name, None) for name in names]
    for each in found:
        if isinstance(each, FunctionType):
            yield inspect.unwrap(each)


def _scope(thing: Any) -> dict[str, Any]:
    """What the names in a class or function mean: globals, and over them the cells of closures."""
    own = vars(thing).values() if isinstance(thing, type) else [thing]
    functions = [
        function
        for value in own
        for function in _functions(value)
        if function.__module__ == thing.__module__
    ]
    module = sys.modules.get(thing.__module__)
    found = dict(functions[0].__globals__ if functions else vars(module) if module else {})
    for function in functions:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                found[name] = cell.cell_contents
            except ValueError:  # not filled yet
                continue
    return found


def _text(thing: Any) -> _Text:
    try:
        source = inspect.getsource(thing)
        indented = source[:1].isspace()
        tree = ast.parse("if True:\n" + source if indented else source)
        (statement,) = tree.body[0].body if indented else tree.body  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError, ValueError):
        return _compiled(thing)
    for node in ast.walk(tree):
        if isinstance(inside := getattr(node, "body", None), list):
            kept = [each for each in inside if not _is_text(each)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    text = ast.unparse(statement)
    outer = frozenset(_outer_names(symtable.symtable(text, "code", "exec")))
    chains = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return _Text(text, outer, frozenset(c for c in chains if c.partition(".")[0] in outer))


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a string: a docstring, or what stands under an attribute."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _outer_names(table: symtable.SymbolTable) -> Iterator[str]:
    at_top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() if at_top else symbol.is_global():
            yield symbol.get_name()
    for child in table.get_children():
        yield from _outer_names(child)


def _compiled(thing: Any) -> _Text:
    """The instructions, where there is no text (classes typed into a bare interpreter)."""
    own = vars(thing).values() if isinstance(thing, type) else [thing]
    codes = [code for value in own for each in _functions(value) for code in _codes(each.__code__)]
    text = [
        (
            code.co_name,
            code.co_code.hex(),
            code.co_names,
            [repr(constant) for constant in code.co_consts if isinstance(constant, PLAIN)],
        )
        for code in codes
    ]
    names = {name for code in codes for name in (*code.co_names, *code.co_freevars)}
    return _Text(repr(text), frozenset(names))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
