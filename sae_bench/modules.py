"""Python modules and files of the user's own."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sae_bench.errors import InputError


def load(place: str) -> ModuleType:
    """A module by the path of its file, or by its name: installed, or in the current folder.

    Raises:
        InputError: there is none, or it cannot be imported.
    """
    if place.endswith(".py"):
        return load_file(Path(place))
    try:
        with _importable(Path.cwd()):
            return importlib.import_module(place)
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"{place!r}: {error}; give a module or the path of a .py file") from None


def load_file(path: Path) -> ModuleType:
    """Runs a Python file as a module, under a name that no import can mean. Like a script, it can
    import what lies beside it.

    Raises:
        InputError: no such file, or one that cannot be imported.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    name = f"file {path.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{path}: {error}") from None
    return module


def find(spec: str) -> Any:
    """What `module:name` or `path/to/file.py:name` means.

    Raises:
        InputError: no such module or file, or nothing of that name in it.
    """
    place, _, name = spec.rpartition(":")
    if not (place and name):
        raise InputError(f"{spec!r}: give module:Name or path/to/file.py:Name")
    module = load(place)
    if not hasattr(module, name):
        raise InputError(f"{place}: there is no {name!r} in it")
    return getattr(module, name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in `folder` can be imported inside, before others of the same name."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
