"""The default corpus: technical English that every installation already holds."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import xxhash

from sae_bench import docstrings
from sae_bench.components import digest
from sae_bench.documents import Document, Text, content_hash
from sae_bench.errors import InputError
from sae_bench.folders import cache_folder
from sae_bench.progress import shown

LIBRARIES = (
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "torch",
    "transformers",
    "sympy",
    "networkx",
)
SHORTEST = 200
"""Modules with fewer characters than this are left out."""

FILES_A_PROCESS = 200


@dataclass(frozen=True)
class Documentation(Text):
    """The documentation strings of installed libraries, one document a module (`numpy/linalg`).

    The source files are parsed, never imported; folders of tests are left out. Documents come in
    the order of a hash of their text, so that the first thousand of them are a sample of all
    libraries. The result is kept in the user's cache folder under a name made from the libraries'
    versions (and Python's, which decides what parses): the same versions give the same text.

    Args:
        libraries: top-level packages, each called like the distribution that it came with.

    Raises:
        InputError: when read: a library is missing.
    """

    libraries: tuple[str, ...] = LIBRARIES

    def read(self) -> Iterator[Document]:
        """All documents, from the cache folder or made now."""
        yield from self._all()

    def fingerprint(self) -> str:
        """Hash of all documents."""
        return content_hash(self._all())

    def _all(self) -> list[Document]:
        versions = {library: _version(library) for library in self.libraries}
        key = digest({"layout": 1, "python": sys.version_info[:2], "versions": versions})
        path = cache_folder("text") / f"documentation-{key}.parquet"
        documents = _load(path)
        if documents is None:
            documents = _extract(self.libraries)
            _save(documents, path, versions)
        return documents


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"text: this corpus needs the documentation of {library!r}, which is not installed; "
            'pip install "sae-ablations[documentation]"'
        ) from None


def _modules(library: str) -> list[tuple[str, str]]:
    """Pairs (dotted module name, path of the file), without folders of tests."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"text: {library!r} is installed, but holds no package of that name")
    root = Path(spec.submodule_search_locations[0])
    modules = []
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        if not {"test", "tests"} & set(parts[:-1]):
            inner = parts[:-1] if parts[-1] == "__init__" else parts
            modules.append((".".join((library, *inner)), str(file)))
    return sorted(modules)


def _extract(libraries: tuple[str, ...]) -> list[Document]:
    files = [module for library in libraries for module in _modules(library)]
    count = -(-len(files) // FILES_A_PROCESS)
    documents: list[Document] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(_run_docstrings, (files[part::count] for part in range(count)))
        for part in shown(parts, "reading documentation", count, "parts"):
            documents += part
    long = [document for document in documents if len(document.text) >= SHORTEST]
    return sorted(
        long, key=lambda document: (xxhash.xxh3_128_digest(document.text.encode()), document.id)
    )


def _run_docstrings(files: list[tuple[str, str]]) -> list[Document]:
    command = [sys.executable, "-I", "-S", "-W", "ignore", docstrings.__file__]
    done = subprocess.run(
        command, input=json.dumps(files), stdout=subprocess.PIPE, text=True, check=True
    )
    return [Document(name.replace(".", "/"), text) for name, text in json.loads(done.stdout)]


def _load(path: Path) -> list[Document] | None:
    """The documents of an earlier run; None if there are none, or not what was written."""
    try:
        table = pyarrow.parquet.read_table(path)
        columns = (table.column(name).to_pylist() for name in ("id", "text"))
        documents = [Document(*row) for row in zip(*columns, strict=True)]
    except (OSError, KeyError, pyarrow.ArrowException):
        return None
    recorded = (table.schema.metadata or {}).get(b"content_hash", b"").decode()
    return documents if recorded == content_hash(documents) else None


def _save(documents: list[Document], path: Path, versions: dict[str, str]) -> None:
    columns = {
        "id": [document.id for document in documents],
        "text": [document.text for document in documents],
    }
    notes = {"content_hash": content_hash(documents), "versions": json.dumps(versions)}
    table = pyarrow.table(columns).replace_schema_metadata(notes)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}; set SAE_BENCH_CACHE elsewhere") from None
    finally:
        temporary.unlink(missing_ok=True)
