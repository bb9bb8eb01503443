"""Gemma Scope (arXiv 2408.05147): one file params.npz an SAE, JumpReLU."""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_bench.conversion import jumprelu_of
from sae_bench.errors import InputError
from sae_bench.files import write_atomically
from sae_bench.formats.format import Format, sae_from
from sae_bench.formats.places import REMARK, remark, told
from sae_bench.plain import PlainJumpReLU, subtracting
from sae_bench.sae import SparseAutoencoder
from sae_bench.weights import floats, matrix, portable, read_npz

PARAMS = "params.npz"
SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}
"""The endings of the repositories' names, and the sites that they mean."""


class GemmaScope(Format):
    """params.npz, or any .npz file: W_enc, W_dec, b_enc, b_dec, threshold.

    Every array is a tensor there, so that what is known of the place stands in the comment of the
    archive, which the library's loaders do not look at.

    b_dec is not subtracted from the input there. The activations' scale has been folded into the
    biases and thresholds already. (The repositories' `embedding` folders belong to embeddings as
    the model uses them, times sqrt(d_in): `layers.0.resid_pre`.)
    """

    name = "gemma-scope"
    parts = (PARAMS,)

    def claims(self, path: Path) -> bool:
        """An .npz file, or a folder with params.npz."""
        return (path.suffix == ".npz" and not path.is_dir()) or (path / PARAMS).exists()

    def targets(self, path: Path) -> list[Path]:
        """The path itself, if it is that of an .npz file."""
        return [path] if path.suffix == ".npz" else super().targets(path)

    def load(self, path: Path) -> SparseAutoencoder:
        """A JumpReLU SAE; model and site as the folders' names tell."""
        path = path / PARAMS if path.is_dir() else path
        arrays = read_npz(path)
        named = {re.sub("^w_", "W_", name): value for name, value in arrays.items()}
        if len(named) < len(arrays):
            raise InputError(f"{path}: an array is there twice, in lower and in upper case")
        scaling = named.pop("scaling_factor", None)
        if scaling is not None and not (scaling == 1).all():
            raise InputError(
                f"{path}: 'scaling_factor' is not 1 everywhere: codes rescaled after training are "
                "not read"
            )
        d_in, d_sae = matrix(named, "W_enc", path)
        shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        shapes |= {"b_enc": (d_sae,), "threshold": (d_sae,)}
        tensors = floats(named, shapes, path, "Gemma Scope SAE")
        plain = PlainJumpReLU(
            W_enc=tensors["W_enc"],
            W_dec=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            b_enc=subtracting(tensors["b_enc"], tensors["W_enc"], tensors["b_dec"]),
            threshold=tensors["threshold"].clamp(min=0),
        )
        return sae_from(plain, path, _provenance(path))

    def save(self, sae: SparseAutoencoder, path: Path) -> None:
        """Any SAE that has an equal JumpReLU SAE."""
        plain = jumprelu_of(sae)
        tensors = portable(plain.tensors | {"b_enc": plain.b_enc_of_x})
        comment = json.dumps({REMARK: remark(sae.provenance)}).encode()
        if len(comment) > zipfile.ZIP_MAX_COMMENT:
            raise InputError(
                f"provenance: {len(comment)} bytes of model, site and context, an archive has room "
                f"for {zipfile.ZIP_MAX_COMMENT}; shorten them"
            )
        (path,) = self.targets(path)
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]
            with zipfile.ZipFile(partial, "a") as archive:
                archive.comment = comment

        write_atomically(path, write)


def _provenance(path: Path) -> dict[str, Any]:
    """Model and site, if the folders still have their names on the hub."""
    place: dict[str, Any] = {"gemma_scope": path.as_posix()}
    repo = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", path.as_posix())
    layer = re.search(r"/layer_(\d+)/", path.as_posix())
    if repo:
        place["model"] = f"google/gemma-2-{repo[1]}" + ("-it" if repo[2] == "it" else "")
        place["site"] = f"layers.{layer[1]}.{SITES[repo[3]]}" if layer else None
        place["context"] = {"length": 1024}
    return {**place, **told(_noted(path), _words, {}, f"{path}: comment")}


def _words(place: Mapping[str, Any]) -> dict[str, Any]:
    """There are none in the file for a place."""
    return {}


def _noted(path: Path) -> Any:
    """The remark in the comment of an archive; None, if the comment is not ours.

    Raises:
        InputError: it is ours and damaged.
    """
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    if not comment.startswith(f'{{"{REMARK}":'.encode()):
        return None
    try:
        return json.loads(comment)[REMARK]
    except (ValueError, RecursionError):
        raise InputError(f"{path}: its comment is not as it was written: damaged") from None
