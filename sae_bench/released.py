"""SAEs that are finished already, as arms: measured beside trained ones, never trained."""

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, ClassVar

import torch

from sae_bench.arm import slot_columns
from sae_bench.components import digest
from sae_bench.errors import InputError
from sae_bench.hub import is_repo
from sae_bench.loading import load_sae, saes_below
from sae_bench.sae import SparseAutoencoder

FINGERPRINT = "model_fingerprint"
"""Key of the provenance of trained SAEs under which the fingerprint of their model stands."""


@dataclass(frozen=True)
class Released:
    """An SAE from a file, a folder or the hub, in any known format, as an arm of a run.

    `run([*arms, Released("params.npz", "Gemma Scope")], ...)` gives it a row in the table, and so a
    place on the frontier.

    Args:
        path: what `load_sae` takes.
        name: the line in figures that it belongs to.
        loaded: the SAE that lies there, if it is at hand.

    Raises:
        InputError: no such SAE, or no name.
    """

    path: str | Path
    name: str = "released"
    sae: SparseAutoencoder = field(init=False, repr=False, compare=False)
    loaded: InitVar[SparseAutoencoder | None] = None

    objection: ClassVar[None] = None

    def __post_init__(self, loaded: SparseAutoencoder | None) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise InputError(f"Released: name must be text, got {self.name!r:.40}")
        object.__setattr__(self, "sae", load_sae(self.path) if loaded is None else loaded)

    @property
    def site(self) -> str | None:
        """The site that it says it belongs to."""
        return self.sae.provenance.get("site")

    @cached_property
    def _digest(self) -> str:
        """Hash of what was loaded: architecture and slots (k is one of them), and names, shapes and
        bytes of all tensors."""
        found = hashlib.sha256(f"{type(self.sae).__name__} {digest(self.sae.slots)}".encode())
        for name, tensor in sorted(self.sae.state_dict().items()):
            found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:12]

    @property
    def key(self) -> str:
        """Name of the arm's folder: readable, unique by content."""
        return f"released-{self._digest}"

    def record(self) -> dict[str, Any]:
        """JSON-ready description."""
        return {
            "released": str(self.path),
            "name": self.name,
            "weights": self._digest,
            "architecture": type(self.sae).__name__,
            "provenance": self.sae.provenance,
        }

    def columns(self) -> dict[str, Any]:
        """What the result table says of it; how it was trained is not known."""
        return {
            "arm": self.key,
            "series": self.name,
            "released": str(self.path),
            "setting": self.key,
            "architecture": _architecture(self.sae),
            **slot_columns(self.sae.slots, self.sae.d_sae),
            "d_sae": self.sae.d_sae,
            "seed": math.nan,
            "train_tokens": math.nan,
        }

    def check_source(self, d_in: int, source: Mapping[str, Any]) -> None:
        """Whether it reads these activations at all. A warning says if it may belong to another
        language model, known by a name of its own.

        Args:
            d_in: width of the activations.
            source: their record (`ActivationSource.record`).

        Raises:
            InputError: another width, or it says that it belongs to another site, or to what is
                certainly another model: by its weights, or by its name on the hub.
        """
        own, site = self.site, source.get("site")
        if self.sae.d_in != d_in:
            raise InputError(
                f"{self.path}: reads activations of width {self.sae.d_in}, these have {d_in}"
            )
        if own and site and own != site:
            raise InputError(f"{self.path}: belongs to {own}, the activations are of {site}")
        self._check_model(source.get("model") or {})

    def _check_model(self, model: Mapping[str, Any]) -> None:
        names = self.sae.provenance.get("model"), model.get("name")
        hashes = self.sae.provenance.get(FINGERPRINT), model.get("fingerprint")
        if not all(isinstance(name, str) and name for name in names):
            return
        weights_differ = all(hashes) and hashes[0] != hashes[1]
        own, other = (str(name) for name in names)
        if all(hashes) and not weights_differ:
            return
        if PurePath(own).name.casefold() == PurePath(other).name.casefold():  # whoever hosts it
            if weights_differ:
                warnings.warn(
                    f"{self.path}: was trained on {own} with other weights, or of another dtype, "
                    "than the activations are of",
                    stacklevel=4,
                )
            return
        found = f"{self.path}: belongs to the model {own}, the activations are of {other}"
        if weights_differ or (is_repo(own) and is_repo(other)):
            raise InputError(
                f"{found}; if that is meant, give it that model with `sae-bench convert --model`"
            )
        warnings.warn(f"{found}, which may be another one", stacklevel=4)


def released_at(path: str | Path) -> list[Released]:
    """The SAE at a path, or all SAEs in a folder that is none itself: `saes_below`. Those of one
    architecture and width are one line in figures, which begins with the folder's name, so that
    other folders have lines of their own.

    Raises:
        InputError: there is none, or one of them cannot be read.
    """
    folder = Path(path)
    found = saes_below(folder) if folder.is_dir() else []
    if found in ([], [folder]):
        return [Released(path)]
    made = []
    for each in found:
        sae = load_sae(each)
        kind = f"{_architecture(sae)}, {sae.d_sae} latents"
        made.append(Released(each, f"{folder.resolve().name}: {kind}", sae))
    return made


def by_part(
    released: Iterable[Released], sites: Mapping[str, str | None]
) -> dict[str, list[Released]]:
    """The SAEs that each part of a run measures: those of its site, and where all parts have one
    site those that do not say theirs.

    Args:
        released: all of them.
        sites: site of each part, by name; None where activations have none.

    Raises:
        InputError: an SAE says a site that no part has, or none where parts differ in theirs.
    """
    released, places = list(released), set(sites.values())
    for each in released:
        if each.site is None and len(places) > 1:
            raise InputError(
                f"{each.path}: does not say its site, and the parts have {len(places)}; choose "
                "parts of one, or name it with `sae-bench convert --site`"
            )
        if each.site is not None and not places & {each.site, None}:
            raise InputError(
                f"{each.path}: belongs to {each.site}, the activations are of "
                f"{', '.join(sorted(map(str, places)))}; measure it in a run of its own site"
            )
    return {
        part: [each for each in released if None in (each.site, site) or each.site == site]
        for part, site in sites.items()
    }


def _architecture(sae: SparseAutoencoder) -> str:
    return type(sae).__name__.removesuffix("SAE")
