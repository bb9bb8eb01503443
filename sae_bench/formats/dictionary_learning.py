"""dictionary_learning 0.1: a folder with ae.pt (a state dict) and config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.conversion import exportable
from sae_bench.errors import InputError
from sae_bench.files import read_json, write_atomically, write_json
from sae_bench.formats.configs import check_config, check_types, number_of_latents
from sae_bench.formats.format import Format, sae_from
from sae_bench.formats.places import (
    REMARK,
    context_length,
    remark,
    site_of_submodule,
    submodule,
    told,
)
from sae_bench.plain import (
    Plain,
    PlainBatchTopK,
    PlainGated,
    PlainJumpReLU,
    PlainReLU,
    PlainTopK,
    subtracting,
)
from sae_bench.sae import SparseAutoencoder
from sae_bench.weights import floats, matrix, portable, read_state_dict

WEIGHTS, CONFIG = "ae.pt", "config.json"
TYPES: Mapping[str, Any] = {
    "activation_dim": int,
    "dict_size": int,
    "layer": int | None,
    "submodule_name": str | None,
    "lm_name": str | None,
}
"""Types of the trainer's keys that are read."""

UNSET = -1.0
"""The library's threshold of a top-k SAE that has not seen any data."""


@dataclass(frozen=True)
class Layout:
    """How a class of the library names its tensors.

    Args:
        plain: what the class computes.
        names: our name -> theirs. Those that end in `.weight` are transposed.
        scalars: numbers in the state dict besides.
        subtracts: whether b_dec is subtracted from the input.
    """

    plain: type[Plain]
    names: Mapping[str, str]
    scalars: tuple[str, ...] = ()
    subtracts: bool = True


_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_BIASED = {**_LINEAR, "b_enc": "encoder.bias"}
_SAME = {name: name for name in ("W_enc", "W_dec", "b_dec", "b_enc")}
_TOPK = ("k", "threshold")

LAYOUTS = {
    "AutoEncoder": Layout(PlainReLU, {**_BIASED, "b_dec": "bias"}),
    "AutoEncoderNew": Layout(PlainReLU, {**_BIASED, "b_dec": "decoder.bias"}, subtracts=False),
    "GatedAutoEncoder": Layout(
        PlainGated,
        {**_LINEAR, "b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias"}
        | {"r_mag": "r_mag"},
    ),
    "JumpReluAutoEncoder": Layout(
        PlainJumpReLU, {**_SAME, "threshold": "threshold"}, subtracts=False
    ),
    "AutoEncoderTopK": Layout(PlainTopK, {**_BIASED, "b_dec": "b_dec"}, _TOPK),
    "BatchTopKSAE": Layout(PlainBatchTopK, {**_BIASED, "b_dec": "b_dec"}, _TOPK),
    "MatryoshkaBatchTopKSAE": Layout(PlainBatchTopK, _SAME, (*_TOPK, "group_sizes")),
}
WRITTEN = {
    PlainReLU: "AutoEncoder",
    PlainGated: "GatedAutoEncoder",
    PlainJumpReLU: "JumpReluAutoEncoder",
    PlainTopK: "AutoEncoderTopK",
    PlainBatchTopK: "BatchTopKSAE",
}


class DictionaryLearning(Format):
    """ae.pt and config.json, or one of the checkpoints below them.

    Weights are read as they were saved. (The library's own loader scales the codes of an
    AutoEncoder, though not its reconstructions, by the norms of the decoder's columns, unless they
    are 1.)
    """

    name = "dictionary-learning"
    parts = (WEIGHTS, CONFIG)

    def claims(self, path: Path) -> bool:
        """A .pt file, or a folder with ae.pt."""
        return (path.suffix == ".pt" and not path.is_dir()) or (path / WEIGHTS).exists()

    def load(self, path: Path) -> SparseAutoencoder:
        """The SAE, its weights in float32."""
        weights = path / WEIGHTS if path.is_dir() else path
        config, where = _config(weights)
        layout = LAYOUTS[config["dict_class"]]
        state = read_state_dict(weights)
        if "ae" in state or "optimizer" in state:
            raise InputError(
                f"{weights}: a training checkpoint (it holds {', '.join(sorted(state))}); "
                "its weights are in units of its buffer: let the training finish and use that ae.pt"
            )
        first = layout.names["W_enc"]
        shape = matrix(state, first, weights)
        d_in, d_sae = shape[::-1] if _transposed(first) else shape
        check_config(config, {"activation_dim": d_in, "dict_size": d_sae}, where, weights)
        numbers = {name: state.pop(name, None) for name in layout.scalars}
        theirs = floats(state, _shapes(layout, d_in, d_sae), weights, config["dict_class"])
        ours = {
            name: theirs[other].T.contiguous() if _transposed(other) else theirs[other]
            for name, other in layout.names.items()
        }
        if not layout.subtracts:
            ours["b_enc"] = subtracting(ours["b_enc"], ours["W_enc"], ours["b_dec"])
        plain = _plain(layout, ours, numbers, weights)
        if isinstance(plain, PlainTopK | PlainBatchTopK):
            check_types(config, {"k": int}, f"{where}.trainer")
            check_config(config, {"k": plain.k}, where, weights)
        return sae_from(plain, weights, _provenance(config, where))

    def save(self, sae: SparseAutoencoder, path: Path) -> None:
        """Each kind of SAE as the class that computes it."""
        plain = exportable(sae)
        if (dict_class := WRITTEN.get(type(plain))) is None:
            raise InputError(f"dictionary_learning has no SAE like a {type(plain).__name__}")
        noted = remark(sae.provenance)
        layout, ours = LAYOUTS[dict_class], plain.tensors
        if not layout.subtracts:
            assert isinstance(plain, PlainJumpReLU)
            ours["b_enc"] = plain.b_enc_of_x
        state = portable(
            {
                other: ours[name].T if _transposed(other) else ours[name]
                for name, other in layout.names.items()
            }
        )
        trainer: dict[str, Any] = {
            "dict_class": dict_class,
            "activation_dim": plain.d_in,
            "dict_size": plain.d_sae,
            **submodule(sae.provenance.get("site")),
            "lm_name": sae.provenance.get("model"),
        }
        if isinstance(plain, PlainTopK | PlainBatchTopK):
            trainer["k"] = plain.k
            shared = plain.threshold[0] if isinstance(plain, PlainBatchTopK) else UNSET
            state["k"] = torch.tensor(plain.k, dtype=torch.int32)
            state["threshold"] = torch.tensor(float(shared))
        buffer = {"d_submodule": plain.d_in, "ctx_len": context_length(sae.provenance)}
        config = {"trainer": trainer, "buffer": buffer, REMARK: noted}
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / WEIGHTS, lambda partial: torch.save(state, partial))
        write_json(path / CONFIG, config)


def _transposed(name: str) -> bool:
    """Whether it is the weight of a torch Linear, of shape (out, in)."""
    return name.endswith(".weight")


def _shapes(layout: Layout, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, by their names in the library."""
    ours: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in)}
    ours["b_dec"] = (d_in,)
    found = {other: ours.get(name, (d_sae,)) for name, other in layout.names.items()}
    return {other: shape[::-1] if _transposed(other) else shape for other, shape in found.items()}


def _config(weights: Path) -> tuple[dict[str, Any], Path]:
    """The trainer's part of the config that belongs to a file of weights, and where it stands:
    beside the weights, or above the folder `checkpoints`."""
    beside = weights.parent / CONFIG
    path = beside if beside.exists() else weights.parent.parent / CONFIG
    config = read_json(path if path.exists() else beside)
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if not isinstance(trainer, dict) or trainer.get("dict_class") not in list(LAYOUTS):
        found = trainer.get("dict_class") if isinstance(trainer, dict) else None
        raise InputError(
            f"{path}: trainer.dict_class {found!r:.60} cannot be read; known: {', '.join(LAYOUTS)}"
        )
    check_types(trainer, TYPES, f"{path}.trainer")
    check_types(config, {"buffer": dict | None}, path)
    buffer = config.get("buffer") or {}
    check_types(buffer, {"ctx_len": int | None}, f"{path}.buffer")
    return {**trainer, "buffer": buffer, REMARK: config.get(REMARK)}, path


def _plain(
    layout: Layout, ours: dict[str, Tensor], numbers: Mapping[str, Any], path: Path
) -> Plain:
    """The plain SAE of a layout's tensors and numbers."""
    if layout.plain is PlainJumpReLU:
        ours["threshold"] = ours["threshold"].clamp(min=0)  # codes are rectified there
    if not layout.scalars:
        return layout.plain(**ours)
    k, threshold = (_scalar(numbers[name], name, path) for name in _TOPK)
    d_sae = ours["b_enc"].shape[0]
    kept = number_of_latents(int(k) if k == int(k) else k, d_sae, f"{path}: 'k'")
    if layout.plain is PlainTopK:
        return PlainTopK(**ours, k=kept)
    shared = torch.full((d_sae,), max(threshold, 0.0))  # codes are rectified: unset is 0
    return PlainBatchTopK(**ours, threshold=shared, k=kept)


def _scalar(value: Any, name: str, path: Path) -> float:
    known = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if not (known and value.float().isfinite()):
        raise InputError(f"{path}: {name!r} is missing or no finite number")
    return value.item()


def _words(place: Mapping[str, Any]) -> dict[str, Any]:
    """The library's words for a place, the trainer's and the buffer's."""
    return {
        "layer": None,
        "submodule_name": None,
        **submodule(place.get("site")),
        "lm_name": place.get("model"),
        "ctx_len": context_length(place),
    }


def _provenance(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Model, site and context, where the trainer recorded them."""
    length = config["buffer"].get("ctx_len")
    theirs = {**config, "ctx_len": length}
    return {
        "model": config.get("lm_name"),
        "site": site_of_submodule(config.get("layer"), config.get("submodule_name")),
        "context": {"length": length},
        **told(config[REMARK], _words, theirs, f"{path}.{REMARK}"),
        "dictionary_learning": {key: config[key] for key in config if key != REMARK},
    }
