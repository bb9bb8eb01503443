"""This library's own format: a folder that `SparseAutoencoder.save` made."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_bench.components import from_plain
from sae_bench.errors import DamagedFileError, InputError, one_line
from sae_bench.files import checksum, read_json
from sae_bench.formats.configs import check_config
from sae_bench.formats.format import Format
from sae_bench.registry import architecture
from sae_bench.sae import (
    CONFIG,
    ESTIMATOR,
    FORMAT,
    SOURCE,
    VERSION,
    WEIGHTS,
    SparseAutoencoder,
)
from sae_bench.weights import check, matrix, read_safetensors

KEYS = {
    "format": str,
    "version": int,
    "architecture": str,
    "d_in": int,
    "d_sae": int,
    "seed": int,
    "slots": dict,
    "weights": str,
    "provenance": dict,
}


OF_EARLIER_VERSIONS = (
    "if an earlier version saved it: penalty, kernel and decoder matter in training only, put "
    "others into its slots"
)


class Native(Format):
    """config.json and sae.safetensors."""

    name = "sae-ablations"
    parts = (CONFIG, WEIGHTS)

    def claims(self, path: Path) -> bool:
        """Either file: other formats that have one of them are asked first."""
        return (path / WEIGHTS).exists() or (path / CONFIG).exists()

    def load(self, path: Path) -> SparseAutoencoder:
        """The SAE with the types in which it was stored. Combinations of slots that
        have no meaning are refused as in training."""
        where, weights = path / CONFIG, path / WEIGHTS
        config = _config(where)
        cls = architecture(config["architecture"], f"{where}.architecture")
        if absent := sorted(set(cls.slot_defaults()) - set(config["slots"])):
            raise InputError(f"{where}.slots: missing key {absent[0]!r} for a {cls.__name__}")
        defaults = cls.slot_defaults()
        slots = {
            name: from_plain(value, defaults.get(name), f"{where}.slots.{name}")
            for name, value in config["slots"].items()
        }
        tensors = read_safetensors(weights)
        if "W_dec" in tensors:  # before memory is taken for sizes that a file only claims
            d_sae, d_in = matrix(tensors, "W_dec", weights)
            check_config(config, {"d_in": d_in, "d_sae": d_sae}, where, weights)
        try:
            if reason := cls.objection(cls.resolve(slots)):
                raise InputError(f"{cls.__name__}: {reason}; {OF_EARLIER_VERSIONS}")
            sae = cls(config["d_in"], config["d_sae"], seed=config["seed"], **slots)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except (OverflowError, RuntimeError) as error:  # numbers that no tensor can hold
            raise InputError(
                f"{where}: {cls.__name__} cannot be built from its slots ({one_line(error)})"
            ) from None
        sae.provenance = config["provenance"]
        _check_source(sae, where)
        _put(tensors, sae, weights)
        if checksum(weights) != config["weights"]:
            raise DamagedFileError(
                f"{weights}: not the weights that belong to {CONFIG} (its checksum 'weights' "
                "differs): damaged, or another SAE's"
            )
        return sae.eval()

    def save(self, sae: SparseAutoencoder, path: Path) -> None:
        """`SparseAutoencoder.save`."""
        sae.save(path)


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path}: not the config of an SAE saved by this library")
    if config.get("version") != VERSION:
        raise InputError(f"{path}: version {config.get('version')!r}, this library reads {VERSION}")
    if wrong := sorted(set(config) ^ set(KEYS)):
        fault = "unknown" if wrong[0] in config else "missing"
        raise InputError(f"{path}: {fault} key {wrong[0]!r}")
    for key, kind in KEYS.items():
        if not isinstance(config[key], kind):
            raise InputError(f"{path}.{key}: expected {kind.__name__}, got {config[key]!r:.60}")
    if not -(2**63) <= config["seed"] < 2**64:
        raise InputError(f"{path}.seed: {config['seed']:.3e} is no seed of 64 bits")
    return config


def _check_source(sae: SparseAutoencoder, where: Path) -> None:
    """Warns if the SAE was saved by other code of the user's classes than it runs with now."""
    source = sae.provenance.get(SOURCE)
    if source is not None and source != sae.source:
        warnings.warn(
            f"{where}: the code of {type(sae).__name__} or of its parts has changed since this SAE "
            "was saved: it may compute something else now",
            stacklevel=2,
        )


def _put(tensors: Mapping[str, Tensor], sae: SparseAutoencoder, path: Path) -> None:
    """Gives an SAE the tensors of its file, in the types in which they were stored."""
    state = sae.state_dict()
    expected = {name: t for name, t in state.items() if not name.startswith(ESTIMATOR)}
    shapes = {name: tuple(t.shape) for name, t in expected.items()}
    integers = [name for name, t in expected.items() if not t.is_floating_point()]
    check(tensors, shapes, path, type(sae).__name__, integers)
    sae.adopt(tensors)
