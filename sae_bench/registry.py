"""Finding architectures by name: built-ins, installed plug-ins and classes of the user's own."""

from importlib.metadata import entry_points

from sae_bench.components import find_class, subclasses
from sae_bench.errors import InputError
from sae_bench.sae import SparseAutoencoder

GROUP = "sae_bench.architectures"


def _load_entry_points() -> None:
    for point in entry_points(group=GROUP):
        loaded = point.load()
        if not (isinstance(loaded, type) and issubclass(loaded, SparseAutoencoder)):
            raise InputError(f"entry point {point.name!r} ({point.value}) is no SparseAutoencoder")


def architecture(name: str, where: str = "registry") -> type[SparseAutoencoder]:
    """The architecture class called `name`: built in, from an installed package's entry point
    `sae_bench.architectures`, or any imported subclass.

    Raises:
        InputError: unknown, or two different classes under one name.
    """
    _load_entry_points()
    return find_class(SparseAutoencoder, name, where)


def architectures() -> dict[str, type[SparseAutoencoder]]:
    """Every known architecture by class name.

    Raises:
        InputError: two different classes under one name.
    """
    _load_entry_points()
    return {cls.__name__: architecture(cls.__name__) for cls in subclasses(SparseAutoencoder)}
