"""This library's own format: a folder that `SparseAutoencoder.save` made."""

from pathlib import Path
from typing import Any

from sae_bench.components import Component, from_record
from sae_bench.errors import InputError
from sae_bench.files import read_json
from sae_bench.formats.format import Format
from sae_bench.registry import architecture
from sae_bench.sae import CONFIG, ESTIMATOR, FORMAT, VERSION, WEIGHTS, SparseAutoencoder
from sae_bench.weights import check, read_safetensors

KEYS = {
    "format": str,
    "version": int,
    "architecture": str,
    "d_in": int,
    "d_sae": int,
    "seed": int,
    "slots": dict,
    "provenance": dict,
}


class Native(Format):
    """config.json and sae.safetensors."""

    name = "sae-ablations"
    files = f"{CONFIG} and {WEIGHTS}"

    def claims(self, path: Path) -> bool:
        """Either file: other formats that have one of them are asked first."""
        return (path / WEIGHTS).exists() or (path / CONFIG).exists()

    def load(self, path: Path) -> SparseAutoencoder:
        """The SAE with the types in which it was stored."""
        config = _config(path / CONFIG)
        where = path / CONFIG
        cls = architecture(config["architecture"], f"{where}.architecture")
        if absent := sorted(set(cls.slot_defaults()) - set(config["slots"])):
            raise InputError(f"{where}.slots: missing key {absent[0]!r} for a {cls.__name__}")
        slots = {
            name: from_record(Component, value, f"{where}.slots.{name}")
            if isinstance(value, dict)
            else (tuple(value) if isinstance(value, list) else value)
            for name, value in config["slots"].items()
        }
        try:
            sae = cls(config["d_in"], config["d_sae"], seed=config["seed"], **slots)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        sae.provenance = config["provenance"]
        _load_tensors(sae, path / WEIGHTS)
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
    return config


def _load_tensors(sae: SparseAutoencoder, path: Path) -> None:
    tensors = read_safetensors(path)
    state = {name: t for name, t in sae.state_dict().items() if name.startswith(ESTIMATOR)}
    expected = {name: t for name, t in sae.state_dict().items() if name not in state}
    shapes = {name: tuple(t.shape) for name, t in expected.items()}
    integers = [name for name, t in expected.items() if not t.is_floating_point()]
    check(tensors, shapes, path, type(sae).__name__, integers)
    sae.load_state_dict({**tensors, **state}, assign=True)
