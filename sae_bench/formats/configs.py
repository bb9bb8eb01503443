"""Reading configs that somebody else wrote. Every function raises `InputError` with one line that
names the file, the key, what stands there and what belongs there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_bench.annotations import fit
from sae_bench.errors import InputError


def check_types(config: Mapping[str, Any], hints: Mapping[str, Any], path: Path | str) -> None:
    """Whether the values of a config are of the types that its library writes; keys may be absent.
    Nothing is converted: "False" is no boolean, 3.0 no integer.

    Args:
        config: an object of a JSON file.
        hints: key -> annotation, for the keys that are read.
        path: of the file, and of the object in it.

    Raises:
        InputError: a value of another type.
    """
    for key, hint in hints.items():
        if key in config:
            fit(config[key], hint, f"{path}.{key}")


def check_config(
    config: Mapping[str, Any], sizes: Mapping[str, float], path: Path, weights: Path
) -> None:
    """Whether a config states the sizes that the weights have; it may leave them out.

    Raises:
        InputError: another size.
    """
    for key, size in sizes.items():
        if key in config and config[key] != size:
            raise InputError(
                f"{path}.{key}: says {config[key]!r:.40}, but {weights.name} has {size}"
            )


def number_of_latents(k: Any, d_sae: int, where: str) -> int:
    """k, if that many of `d_sae` latents can be kept.

    Raises:
        InputError: no integer, or out of range.
    """
    if not (isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= d_sae):
        raise InputError(f"{where}: expected an integer from 1 to {d_sae}, got {k!r:.40}")
    return k
