"""The docstrings of Python files, read without importing them.

A module and a program: `documentation` runs it in processes of its own, on standard input a JSON
list of [module name, path], on standard output the list of [module name, text]. It imports nothing
but the standard library, so such a process starts in milliseconds, and needs no fork of a process
that may hold threads.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path


def docstrings(tree: ast.Module, module: str) -> Iterator[str]:
    """The module's, classes' and functions' docstrings in source order, each under its name: the
    dotted name of the module, then qualified names within it (`Axes.plot`)."""
    if text := ast.get_docstring(tree):
        yield f"{module}\n\n{text}"
    yield from _below(tree, "")


def _below(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(child):
                yield f"{prefix}{child.name}\n\n{text}"
            yield from _below(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _below(child, prefix)


def module_text(module: str, path: str) -> str:
    """All docstrings of a file, separated by blank lines; empty if this Python cannot parse it."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return ""
    return "\n\n".join(docstrings(tree, module))


if __name__ == "__main__":
    json.dump(
        [(module, module_text(module, path)) for module, path in json.load(sys.stdin)], sys.stdout
    )
