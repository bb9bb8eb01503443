"""The manifest of a folder of shards: what they were made from, and their checksums."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sae_bench.errors import DamagedFileError, InputError
from sae_bench.files import read_record, write_record
from sae_bench.shards import Shard

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The list of a folder's shards.

    Attributes:
        inputs: what determines the content (its hash names the folder).
        provenance: what helps to find the inputs again: names, paths, versions.
        shards: in order of their index; the files may have been deleted since.
        end_of_text: the last shard reaches the end of the text: there is no more to extract.
    """

    inputs: dict[str, Any]
    provenance: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    end_of_text: bool = False

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `folder`/manifest.json.

        Raises:
            InputError: it is missing or of another version.
            DamagedFileError: it is not as it was written.
        """
        path = folder / "manifest.json"
        if not path.exists():
            raise InputError(f"{folder}: no activation cache here (no manifest.json)")
        try:
            record = read_record(path)
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}; delete {folder} and build the cache again") from None
        if record["format"] != FORMAT:
            raise InputError(
                f"{path}: format {record['format']} is not {FORMAT}, the format of this "
                "version; build the cache in another folder"
            )
        shards = tuple(Shard(folder / entry.pop("file"), **entry) for entry in record["shards"])
        return cls(record["inputs"], record["provenance"], shards, record["end_of_text"])

    def save(self, folder: Path) -> None:
        """Write `folder`/manifest.json atomically."""
        record = {
            "format": FORMAT,
            "inputs": self.inputs,
            "provenance": self.provenance,
            "shards": [
                {
                    "file": shard.path.name,
                    "rows": shard.rows,
                    "squares": shard.squares,
                    "checksum": shard.checksum,
                }
                for shard in self.shards
            ],
            "end_of_text": self.end_of_text,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / "manifest.json", record)

    def lacks(self, index: int) -> bool:
        """Whether shard `index` is neither there nor beyond the end of the text."""
        if index >= len(self.shards):
            return not self.end_of_text
        return not self.shards[index].path.exists()

    def lacking(self, shards: int) -> int:
        """How many of the first `shards` shards are lacking."""
        known = sum(self.lacks(index) for index in range(min(shards, len(self.shards))))
        beyond = 0 if self.end_of_text else shards - len(self.shards)
        return known + max(0, beyond)

    def with_shard(self, index: int, shard: Shard) -> "Manifest":
        """The manifest with shard `index` appended or replaced."""
        shards = (*self.shards[:index], shard, *self.shards[index + 1 :])
        return replace(self, shards=shards)
