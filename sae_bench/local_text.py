"""Text in files of one's own: .txt, .jsonl, .parquet, or a folder of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from sae_bench.components import digest
from sae_bench.documents import Document, Text
from sae_bench.errors import InputError
from sae_bench.files import checksum


@dataclass(frozen=True)
class LocalText(Text):
    """A file, or all such files in a folder and its subfolders, ordered by their paths in it.

    - `.txt`: the file is one document (and in memory as one).
    - `.jsonl`: every line is an object, and its `field` is a document; blank lines do not count.
    - `.parquet`: every row is a document, the column `field`; read batch by batch.

    Documents are called by file, relative to `path`, and by line or row, counted from 1. Files and
    folders whose names begin with a dot are passed over.

    Raises:
        InputError: when read: nothing there, no such files, broken JSON, no such field, an empty
            corpus; file, line and field are named.
    """

    path: str | Path
    field: str = "text"

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))

    def read(self) -> Iterator[Document]:
        """All documents, file by file."""
        for name, file in self.files():
            try:
                yield from READERS[file.suffix.lower()](file, name, self.field)
            except (OSError, pyarrow.ArrowException) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{name}: cannot be read: {reason}") from None

    def fingerprint(self) -> str:
        """Hash of the names and the contents of all files, and of the field. One document is read
        too, so that a mistake shows before the files are hashed."""
        next(self.documents())
        return digest([self.field, hash_files(self.files())], 32)

    def files(self) -> list[tuple[str, Path]]:
        """The files as pairs (name relative to `path`, location), in reading order."""
        root = Path(self.path).expanduser()
        if not root.exists():
            raise InputError(f"text: there is no file or folder {str(self.path)!r}")
        found = files_below(root)
        files = [(name, file) for name, file in found if file.suffix.lower() in READERS]
        if not files:
            raise InputError(f"text: no {', '.join(READERS)} file in {str(self.path)!r}")
        return files


def files_below(root: Path) -> list[tuple[str, Path]]:
    """A file, or all files of a folder, as pairs (relative name, location) ordered by name."""
    if root.is_file():
        return [(root.name, root)]
    found = ((file.relative_to(root), file) for file in root.rglob("*") if file.is_file())
    visible = [pair for pair in found if not any(part.startswith(".") for part in pair[0].parts)]
    return sorted((name.as_posix(), file) for name, file in visible)


def hash_files(files: list[tuple[str, Path]]) -> list[tuple[str, str]]:
    """Pairs (name, hash of the content: xxh3, 128 bits), read in pieces."""
    return [(name, checksum(file)) for name, file in files]


def _read_txt(file: Path, name: str, field: str) -> Iterator[Document]:
    try:
        yield Document(name, file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 at byte {error.start}; convert the file") from None


def _read_jsonl(file: Path, name: str, field: str) -> Iterator[Document]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # broken JSON or broken UTF-8
                raise InputError(f"{name}:{number}: not a line of JSON: {error}") from None
            yield Document.from_row(f"{name}:{number}", row, field)


def _read_parquet(file: Path, name: str, field: str) -> Iterator[Document]:
    with pyarrow.parquet.ParquetFile(file) as table:
        columns = table.schema_arrow.names
        chosen = [field] if field in columns else columns  # all, for the message on what there is
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=chosen):
            for row in batch.to_pylist():
                number += 1
                yield Document.from_row(f"{name}:{number}", row, field)


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
