"""SAELens 6: a folder with cfg.json and sae_weights.safetensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae_bench.conversion import exportable
from sae_bench.errors import InputError
from sae_bench.files import read_json, write_atomically, write_json
from sae_bench.formats.configs import check_config, check_types, number_of_latents
from sae_bench.formats.format import Format, sae_from
from sae_bench.formats.places import (
    HOOKS,
    REMARK,
    context_length,
    hook_name,
    remark,
    site_of_hook,
    told,
)
from sae_bench.plain import (
    Plain,
    PlainGated,
    PlainJumpReLU,
    PlainReLU,
    PlainTopK,
    subtracting,
)
from sae_bench.sae import SparseAutoencoder
from sae_bench.weights import floats, matrix, portable, read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

WRITTEN_FOR = "6.0.0"
"""Oldest version of SAELens that reads what is written here."""

VECTORS = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""Tensors of shape (d_sae,), by architecture; W_enc, W_dec and b_dec belong to all."""

METADATA: Mapping[str, Any] = {
    "model_name": str | None,
    "hook_name": str | None,
    "hook_point": str | None,
    "context_size": int | None,
}
TYPES: Mapping[str, Any] = {
    "d_in": int,
    "d_sae": int,
    "apply_b_dec_to_input": bool,
    "rescale_acts_by_decoder_norm": bool,
    "normalize_activations": str | bool | None,
    "metadata": dict | None,
}
"""Types of the keys that are read."""

FOLDED = ("none", "expected_average_only_in", "covariance_whitening")
"""Values of normalize_activations that do nothing at inference: the weights take raw activations.
(A user who divides by the average norm by hand before encoding has to go on doing so.)"""


class SAELens(Format):
    """cfg.json and sae_weights.safetensors; architectures standard, topk, jumprelu and gated."""

    name = "saelens"
    parts = (CONFIG, WEIGHTS)

    def claims(self, path: Path) -> bool:
        """By the name of the weights."""
        return (path / WEIGHTS).exists()

    def load(self, path: Path) -> SparseAutoencoder:
        """The SAE, its weights in float32. `apply_b_dec_to_input=False` is folded into b_enc,
        `rescale_acts_by_decoder_norm` into encoder and decoder."""
        where, weights = path / CONFIG, path / WEIGHTS
        config = _config(where)
        tensors = read_safetensors(weights)
        scaling = tensors.pop("scaling_factor", None)  # all ones in some that are published
        if scaling is not None and not (scaling == 1).all():
            raise InputError(f"{weights}: 'scaling_factor' is not 1 everywhere; not read")
        d_in, d_sae = matrix(tensors, "W_enc", weights)
        check_config(config, {"d_in": d_in, "d_sae": d_sae}, where, weights)
        names = VECTORS[config["architecture"]]
        shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        shapes |= dict.fromkeys(names, (d_sae,))
        kind = f"{config['architecture']} SAE of SAELens"
        tensors = floats(tensors, shapes, weights, kind)
        if not config.get("apply_b_dec_to_input", True):
            tensors |= _with_subtraction(tensors)
        plain = READ[config["architecture"]](tensors, config, where)
        return sae_from(plain, weights, _provenance(config, where))

    def save(self, sae: SparseAutoencoder, path: Path) -> None:
        """Weights as they are, b_dec subtracted. A BatchTopK SAE becomes a jumprelu one with equal
        thresholds, as in SAELens itself."""
        plain = exportable(sae)
        architecture, tensors, extra = _written(plain)
        tensors = portable(tensors)
        noted, words = remark(sae.provenance), _words(sae.provenance)
        heads = str(words["hook_name"]).endswith(HOOKS["attn_z"])
        config = {
            "architecture": architecture,
            "d_in": plain.d_in,
            "d_sae": plain.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            # a hook of shape (head, d_head) has to be joined
            "reshape_activations": "hook_z" if heads else "none",
            **extra,
            "metadata": {
                "sae_lens_version": WRITTEN_FOR,
                "sae_lens_training_version": None,
                "hook_head_index": None,
                "prepend_bos": True,
                "seqpos_slice": [None],
                **words,
            },
            REMARK: noted,
        }
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / WEIGHTS, lambda partial: save_file(tensors, partial))
        write_json(path / CONFIG, config)


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: not the config of an SAE of SAELens")
    if absent := [key for key in ("d_in", "d_sae") if key not in config]:
        raise InputError(f"{path}: missing key {absent[0]!r}")
    check_types(config, TYPES, path)
    check_types(config.get("metadata") or {}, METADATA, f"{path}.metadata")
    check_types(config, METADATA, path)  # flat before version 6
    config.setdefault("architecture", "standard")  # absent before version 3
    if config["architecture"] == "standard":
        config |= _of_activation(config, path)
    if config["architecture"] not in list(VECTORS):
        raise InputError(
            f"{path}: architecture {config['architecture']!r:.60} cannot be read; "
            f"known: {', '.join(VECTORS)} (a training checkpoint has to be saved for inference)"
        )
    normalisation = config.get("normalize_activations") or "none"
    if normalisation not in FOLDED:
        raise InputError(
            f"{path}: normalize_activations {normalisation!r} works token by token and cannot be "
            f"folded into weights; known: {', '.join(FOLDED)}"
        )
    return config


def _of_activation(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the activation function made of a standard SAE before version 6."""
    name = config.get("activation_fn_str", config.get("activation_fn"))
    if name in (None, "relu"):
        return {}
    options = config.get("activation_fn_kwargs")
    if name != "topk" or not isinstance(options, dict):
        raise InputError(f"{path}: activation function {name!r:.60} cannot be read")
    return {"architecture": "topk", "k": options.get("k")}


def _with_subtraction(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The biases for x - b_dec instead of x."""
    W, b_dec = tensors["W_enc"], tensors["b_dec"]
    if "b_enc" in tensors:
        return {"b_enc": subtracting(tensors["b_enc"], W, b_dec)}
    scaled = W * tensors["r_mag"].exp()
    return {
        "b_gate": subtracting(tensors["b_gate"], W, b_dec),
        "b_mag": subtracting(tensors["b_mag"], scaled, b_dec),
    }


def _jumprelu(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> Plain:
    """relu(pre) 1[pre > threshold]: a negative threshold acts as zero."""
    return PlainJumpReLU(**{**tensors, "threshold": tensors["threshold"].clamp(min=0)})


def _topk(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> Plain:
    k = number_of_latents(config.get("k"), len(tensors["b_enc"]), f"{path}.k")
    if not config.get("rescale_acts_by_decoder_norm", False):
        return PlainTopK(**tensors, k=k)
    norms = tensors["W_dec"].norm(dim=1)
    if not (norms > 0).all():
        raise InputError(
            f"{path}: rescale_acts_by_decoder_norm divides by the norms of the rows of W_dec, "
            "and one of them is zero"
        )
    return PlainTopK(
        W_enc=tensors["W_enc"] * norms,
        W_dec=tensors["W_dec"] / norms[:, None],
        b_dec=tensors["b_dec"],
        b_enc=tensors["b_enc"] * norms,
        k=k,
    )


READ: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any], Path], Plain]] = {
    "standard": lambda tensors, config, path: PlainReLU(**tensors),
    "jumprelu": _jumprelu,
    "topk": _topk,
    "gated": lambda tensors, config, path: PlainGated(**tensors),
}


def _written(plain: Plain) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Architecture, tensors and further keys of the config."""
    match plain:
        case PlainReLU():
            return "standard", plain.tensors, {}
        case PlainJumpReLU():
            return "jumprelu", plain.tensors, {}
        case PlainTopK(k=k):
            return "topk", plain.tensors, {"k": k, "rescale_acts_by_decoder_norm": False}
        case PlainGated():
            return "gated", plain.tensors, {}
    raise InputError(f"SAELens has no SAE like a {type(plain).__name__}")


def _words(place: Mapping[str, Any]) -> dict[str, Any]:
    """The library's words for a place."""
    return {
        "model_name": place.get("model"),
        "hook_name": hook_name(place.get("site")),
        "context_size": context_length(place),
    }


def _provenance(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    metadata = config.get("metadata") or config
    return {
        "model": metadata.get("model_name"),
        "site": site_of_hook(metadata.get("hook_name", metadata.get("hook_point"))),
        "context": {"length": metadata.get("context_size")},
        **told(config.get(REMARK), _words, metadata, f"{path}.{REMARK}"),
        "saelens": {key: config[key] for key in config if key != REMARK},
    }
