"""Python files of the user's own."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from sae_bench.errors import InputError


def load_file(path: Path) -> ModuleType:
    """Runs a Python file as a module, under a name that no import can mean.

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
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{path}: {error}") from None
    return module
