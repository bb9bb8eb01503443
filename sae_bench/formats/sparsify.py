"""sparsify (EleutherAI): a folder with cfg.json and sae.safetensors, TopK."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sae_bench.conversion import exportable
from sae_bench.errors import InputError
from sae_bench.files import read_json, write_atomically, write_json
from sae_bench.formats.configs import check_config, check_types, number_of_latents
from sae_bench.formats.format import Format, sae_from
from sae_bench.formats.places import REMARK, remark, told
from sae_bench.plain import PlainTopK
from sae_bench.sae import SparseAutoencoder
from sae_bench.weights import floats, matrix, portable, read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
REFUSED = {
    "skip_connection": "a skip connection adds W_skip x to the reconstruction",
    "transcode": "a transcoder reconstructs another site than it reads",
    "signed": "signed codes are not rectified",
}
"""Options that make something else than a TopK SAE, and why."""

TYPES: Mapping[str, Any] = {
    "d_in": int,
    "num_latents": int | None,
    "expansion_factor": int,
    **dict.fromkeys(REFUSED, bool | None),
}
"""Types of the keys that are read."""


class Sparsify(Format):
    """cfg.json and sae.safetensors. `normalize_decoder` and `multi_topk` matter in training
    only."""

    name = "sparsify"
    parts = (CONFIG, WEIGHTS)

    def claims(self, path: Path) -> bool:
        """Both files."""
        return (path / CONFIG).exists() and (path / WEIGHTS).exists()

    def load(self, path: Path) -> SparseAutoencoder:
        """A TopK SAE, its weights in float32."""
        where, weights = path / CONFIG, path / WEIGHTS
        config = _config(where)
        tensors = read_safetensors(weights)
        d_sae, d_in = matrix(tensors, "encoder.weight", weights)
        sizes: dict[str, float] = {"d_in": d_in, "num_latents": d_sae}
        if not config.get("num_latents"):  # then a multiple of the width
            sizes = {"d_in": d_in, "expansion_factor": d_sae / d_in}
        check_config({"expansion_factor": 32, **config}, sizes, where, weights)
        shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,)}
        shapes |= {"W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        tensors = floats(tensors, shapes, weights, "SAE of sparsify")
        plain = PlainTopK(
            W_enc=tensors["encoder.weight"].T.contiguous(),
            W_dec=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            b_enc=tensors["encoder.bias"],
            k=number_of_latents(config.get("k", 32), d_sae, f"{where}.k"),
        )
        noted = told(config.get(REMARK), _words, config, f"{where}.{REMARK}")
        theirs = {key: config[key] for key in config if key != REMARK}
        provenance = {"site": _site(path.name), **noted, "sparsify": theirs}
        return sae_from(plain, weights, provenance)

    def save(self, sae: SparseAutoencoder, path: Path) -> None:
        """TopK SAEs."""
        plain = exportable(sae)
        if not isinstance(plain, PlainTopK):
            raise InputError(f"sparsify has TopK SAEs only, this is a {type(sae).__name__}")
        tensors = portable(
            {
                "encoder.weight": plain.W_enc.T,
                "encoder.bias": plain.b_enc,
                "W_dec": plain.W_dec,
                "b_dec": plain.b_dec,
            }
        )
        config = {
            "activation": "topk",
            "expansion_factor": max(1, plain.d_sae // plain.d_in),
            "normalize_decoder": True,
            "num_latents": plain.d_sae,
            "k": plain.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": plain.d_in,
            REMARK: remark(sae.provenance),
        }
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / WEIGHTS, lambda partial: save_file(tensors, partial))
        write_json(path / CONFIG, config)


def _words(place: Mapping[str, Any]) -> dict[str, Any]:
    """The library has none for a place."""
    return {}


def _site(folder: str) -> str | None:
    """The site that a folder's name means: the library names it by the module that it hooks."""
    found = re.fullmatch(r"(layers\.\d+)(\.mlp)?", folder)
    return f"{found[1]}.{'mlp_out' if found[2] else 'resid_post'}" if found else None


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict) or "d_in" not in config:
        raise InputError(f"{path}: not the config of an SAE of sparsify (no key 'd_in')")
    check_types(config, TYPES, path)
    if (activation := config.get("activation", "topk")) != "topk":
        raise InputError(f"{path}.activation: {activation!r:.40} cannot be read; known: topk")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise InputError(f"{path}.{key}: {reason}; not read")
    return config
