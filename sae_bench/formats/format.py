"""What a format is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sae_bench.conversion import sae_of
from sae_bench.errors import InputError
from sae_bench.files import check_name, check_writable
from sae_bench.plain import Plain
from sae_bench.sae import SparseAutoencoder

OF_FILES = (".npz", ".pt")
"""Endings by which a path means a file, not the folder of one."""


class Format(ABC):
    """How one library keeps SAEs on disk. SAEs on disk take raw activations."""

    name: ClassVar[str]
    """What users call it."""

    parts: ClassVar[tuple[str, ...]]
    """The files in a folder that make it up."""

    @property
    def files(self) -> str:
        """The same for messages."""
        return " and ".join(self.parts)

    @abstractmethod
    def claims(self, path: Path) -> bool:
        """Whether what lies at `path` looks like this format; damaged files do, too."""

    @abstractmethod
    def load(self, path: Path) -> SparseAutoencoder:
        """The SAE at `path`, on the CPU and in evaluation mode; its `provenance` says where it was
        trained as far as the files tell.

        Raises:
            InputError: a file is missing, damaged, mislabelled or malicious, or describes an SAE
                that no architecture here computes. The message names file and key.
        """

    @abstractmethod
    def save(self, sae: SparseAutoencoder, path: Path) -> None:
        """Writes an SAE that takes raw activations, as the library itself would.

        Raises:
            InputError: the library has no such SAE.
        """

    def targets(self, path: Path) -> list[Path]:
        """The files that `save` writes."""
        return [path / part for part in self.parts]

    def check_target(self, path: Path) -> None:
        """Whether `save` can write to `path`; makes nothing.

        Raises:
            InputError: a file is there where a folder is needed or the other way round, a name that
                means a file for a folder, or no file can be written there.
        """
        check_name(path)
        targets = self.targets(path)
        folder = targets[0].parent
        if folder.exists() and not folder.is_dir():
            raise InputError(
                f"{folder}: cannot be written (a file is there, {self.name} needs a folder for "
                f"{self.files}); choose another place"
            )
        if path == folder and path.suffix in OF_FILES:
            raise InputError(
                f"{path}: cannot be written (a name in {path.suffix} means a file, {self.name} "
                f"makes a folder of {self.files}); choose a name without {path.suffix}"
            )
        if taken := [target for target in targets if target.is_dir()]:
            raise InputError(
                f"{taken[0]}: cannot be written (a folder is there, {self.name} needs a file); "
                "choose another place"
            )
        check_writable(folder)


def sae_from(plain: Plain, path: Path, provenance: Mapping[str, Any]) -> SparseAutoencoder:
    """The SAE that a file of another library holds.

    Args:
        plain: what it computes, in this library's convention.
        path: of its weights, for messages.
        provenance: of the SAE.

    Raises:
        InputError: its numbers do not fit float32 in this convention, or no architecture here
            computes it.
    """
    try:
        sae = sae_of(plain.checked())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    sae.provenance = dict(provenance)
    return sae
