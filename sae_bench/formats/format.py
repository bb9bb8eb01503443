"""What a format is."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from sae_bench.sae import SparseAutoencoder


class Format(ABC):
    """How one library keeps SAEs on disk. SAEs on disk take raw activations."""

    name: ClassVar[str]
    """What users call it."""

    files: ClassVar[str]
    """The files that make it up, for messages."""

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
