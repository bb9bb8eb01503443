"""SAEs from disk: a folder that `SparseAutoencoder.save` made. Nothing is ever unpickled."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sae_bench.components import Component, from_record
from sae_bench.errors import InputError
from sae_bench.files import read_json
from sae_bench.registry import architecture
from sae_bench.sae import CONFIG, ESTIMATOR, FORMAT, VERSION, WEIGHTS, SparseAutoencoder

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


def load_sae(folder: str | Path, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Reads what `SparseAutoencoder.save` wrote; the SAE takes raw activations.

    Raises:
        InputError: not such a folder, unknown architecture or key, value of the wrong type, missing
            or misshapen tensor, numbers that are not finite. The message names file and key.
    """
    folder = Path(folder)
    path = folder / CONFIG
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
    cls = architecture(config["architecture"], f"{path}.architecture")
    if absent := sorted(set(cls.slot_defaults()) - set(config["slots"])):
        raise InputError(f"{path}.slots: missing key {absent[0]!r} for a {cls.__name__}")
    slots = {
        name: from_record(Component, value, f"{path}.slots.{name}")
        if isinstance(value, dict)
        else (tuple(value) if isinstance(value, list) else value)
        for name, value in config["slots"].items()
    }
    try:
        sae = cls(config["d_in"], config["d_sae"], seed=config["seed"], **slots)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _load_tensors(sae, folder / WEIGHTS)
    return sae.to(device).eval()


def _load_tensors(sae: SparseAutoencoder, path: Path) -> None:
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    state = {name: t for name, t in sae.state_dict().items() if name.startswith(ESTIMATOR)}
    expected = {name: t for name, t in sae.state_dict().items() if name not in state}
    if wrong := sorted(set(tensors) ^ set(expected)):
        fault = "unknown" if wrong[0] in tensors else "missing"
        raise InputError(f"{path}: {fault} tensor {wrong[0]!r} for a {type(sae).__name__}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise InputError(
                f"{path}: {name!r} has shape {tuple(value.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
        if value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(
                f"{path}: {name!r} is {value.dtype}, expected a type like {expected[name].dtype}"
            )
        if not value.isfinite().all():
            raise InputError(f"{path}: {name!r} has values that are not finite")
    # In the types that were stored; copied, since the tensors read are windows into the file.
    copies = {name: value.clone() for name, value in tensors.items()}
    sae.load_state_dict({**copies, **state}, assign=True)
