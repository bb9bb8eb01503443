"""Gemma Scope (arXiv 2408.05147): one file params.npz an SAE, JumpReLU."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from sae_bench.conversion import exportable, sae_of
from sae_bench.errors import InputError
from sae_bench.files import write_atomically
from sae_bench.formats.format import Format
from sae_bench.plain import PlainJumpReLU, subtracting
from sae_bench.sae import SparseAutoencoder
from sae_bench.weights import floats, matrix, portable, read_npz

PARAMS = "params.npz"
SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}
"""The endings of the repositories' names, and the sites that they mean."""


class GemmaScope(Format):
    """params.npz, or any .npz file: W_enc, W_dec, b_enc, b_dec, threshold.

    b_dec is not subtracted from the input there. The activations' scale has been folded into the
    biases and thresholds already. (The repositories' `embedding` folders belong to embeddings as
    the model uses them, times sqrt(d_in): `layers.0.resid_pre`.)
    """

    name = "gemma-scope"
    files = PARAMS

    def claims(self, path: Path) -> bool:
        """An .npz file, or a folder with params.npz."""
        return path.suffix == ".npz" or (path / PARAMS).exists()

    def load(self, path: Path) -> SparseAutoencoder:
        """A JumpReLU SAE; model and site as the folders' names tell."""
        path = path if path.suffix == ".npz" else path / PARAMS
        named = {re.sub("^w_", "W_", name): value for name, value in read_npz(path).items()}
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
        sae = sae_of(plain)
        sae.provenance = _provenance(path)
        return sae

    def save(self, sae: SparseAutoencoder, path: Path) -> None:
        """Any SAE that has an equal JumpReLU SAE."""
        plain = exportable(sae).as_jumprelu()
        tensors = portable(plain.tensors | {"b_enc": plain.b_enc_of_x})
        path = path if path.suffix == ".npz" else path / PARAMS
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]

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
    return place
