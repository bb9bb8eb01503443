"""SAEs from disk or a hub, in any of the known formats, and back."""

import os
from pathlib import Path

import torch

from sae_bench.annotations import fit, typed
from sae_bench.devices import default_device
from sae_bench.errors import InputError
from sae_bench.files import check_name
from sae_bench.formats import FORMATS, Format
from sae_bench.hub_sae import hub_path
from sae_bench.sae import SparseAutoencoder


@typed()
def load_sae(path: str | Path, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Reads an SAE that takes raw activations; which format it is in is seen from its files. In
    evaluation mode.

    Args:
        path: folder or file, as this library, SAELens, Gemma Scope, dictionary_learning or sparsify
            write them. A string that is no path here is one on the Hugging Face hub:
            `owner/repo[@revision][/folder]`, where a last part `canonical` is Gemma Scope's SAE
            with an average L0 nearest to 100. The commit is kept in the SAE's provenance.
        device: where to put it.

    Raises:
        InputError: no such device, nothing there, no known format, a hub that cannot be reached,
            or a file that is damaged, mislabelled or malicious. The message names file and key.
            Nothing is ever unpickled.
    """
    device = default_device(device)
    if (remote := hub_path(path)) is None:
        return format_of(Path(path)).load(Path(path)).to(device)
    fetched, origin = remote.fetch()
    sae = format_of(fetched).load(fetched).to(device)
    sae.provenance = {**sae.provenance, "hub": origin}
    return sae


@typed()
def save_sae(sae: SparseAutoencoder, path: str | Path, format: str) -> None:
    """Writes an SAE that takes raw activations (saved or loaded ones do) in a library's format.

    Args:
        sae: what to write.
        path: folder, or file where the format is one file.
        format: a name in `FORMATS`.

    Raises:
        InputError: unknown format, a place that cannot be written to, or the library has no such
            SAE; then nothing is written.
    """
    path = Path(path)
    check_target(path, format)
    if any(tensor.is_meta for tensor in sae.state_dict().values()):
        raise InputError(
            f"{type(sae).__name__}: its tensors are on the device meta, without values"
        )
    fit(sae.provenance, dict, f"{type(sae).__name__}.provenance")
    try:
        FORMATS[format].save(sae, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_target(path: Path, format: str) -> None:
    """Whether `save_sae` can write to `path`; makes nothing.

    Raises:
        InputError: unknown format, or a place that cannot be written to.
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    FORMATS[format].check_target(path)
    if path.exists() and _claimant(path) not in (None, FORMATS[format]):
        raise InputError(f"{path}: holds an SAE of another format; choose another place")


def format_of(path: Path) -> Format:
    """The format of what lies at `path`.

    Raises:
        InputError: nothing is there, or no format claims it.
    """
    check_name(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if found := _claimant(path):
        return found
    if (inner := path / "sae").is_dir():
        raise InputError(f"{path}: an arm of a run; its SAE is {inner}")
    known = "; ".join(f"{name}: {each.files}" for name, each in FORMATS.items())
    raise InputError(f"{path}: no SAE in a known format ({known})")


def saes_below(folder: Path) -> list[Path]:
    """What `load_sae` takes at a folder and below it, sorted: folders that are an SAE, and files
    that are one each. Hidden folders, links to folders, and what lies below an SAE are left out."""
    found = []
    for name, inner, files in os.walk(folder):
        here = Path(name)
        claimed = [here / file for file in files if _claimant(here / file)]
        if len(claimed) < 2 and _claimant(here):
            found.append(here)
            inner.clear()
        else:
            found += claimed
            inner[:] = [each for each in inner if not each.startswith(".")]
    return sorted(found)


def _claimant(path: Path) -> Format | None:
    """The first format that claims what lies at `path`."""
    return next((each for each in FORMATS.values() if each.claims(path)), None)
