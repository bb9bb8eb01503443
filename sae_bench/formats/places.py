"""Where in a model an SAE belongs: in the words of other libraries, and in a remark of our own.

Other libraries have no words for some sites, and some have none at all. What is written in their
formats therefore carries a remark, under one key that they ignore: model, site and context as the
SAE's provenance has them. It counts as long as the library's own words say the same; words that
were changed later count more.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_bench.annotations import fit
from sae_bench.files import check_json
from sae_bench.formats.configs import check_types

REMARK = "sae_ablations"
"""The key of the remark."""

PLACE: Mapping[str, Any] = {"model": str | None, "site": str | None, "context": dict | None}
"""What provenance says of the place, and the types."""

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_z": "attn.hook_z",
}
"""Kinds of sites (`sae_bench.sites`), and the hooks of TransformerLens that give the same."""

SUBMODULES = ("resid_pre", "resid_post", "mlp_out")
"""Kinds that dictionary_learning calls `KIND_layer_N`."""

Words = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A library's words for the place that provenance tells."""


def remark(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What to write down beside a library's own words: what is known of the place.

    Raises:
        InputError: provenance says something else than text of model or site, or no JSON.
    """
    check_types(provenance, PLACE, "provenance")
    known = {key: provenance[key] for key in PLACE if provenance.get(key) is not None}
    check_json(known, "provenance")
    return known


def told(
    noted: Any, words: Words, theirs: Mapping[str, Any], path: Path | str
) -> Mapping[str, Any]:
    """The place that a remark tells, as far as the library's words are still those for it.

    Args:
        noted: what stands under `REMARK`; None: nothing.
        words: gives the library's words for a place.
        theirs: where these words stand in the file; absent ones count as None.
        path: of the remark, for messages.

    Raises:
        InputError: no remark of ours.
    """
    noted = fit(noted, dict | None, str(path)) or {}
    check_types(noted, PLACE, path)
    ours = {key: noted[key] for key in PLACE if noted.get(key) is not None}
    unchanged = all(theirs.get(key) == value for key, value in words(ours).items())
    return ours if unchanged else {}


def hook_name(site: str | None) -> str | None:
    """The TransformerLens hook of a site `layers.N.KIND`; any other site by its own name."""
    layer, kind = _layer_and_kind(site)
    return f"blocks.{layer}.{HOOKS[kind]}" if kind in HOOKS else site


def site_of_hook(hook: str | None) -> str | None:
    """The site that a TransformerLens hook gives; any other name as it is, None where there is
    none."""
    kinds = {name: kind for kind, name in HOOKS.items()}
    found = re.fullmatch(r"blocks\.([0-9]+)\.(.+)", hook or "")
    return f"layers.{found[1]}.{kinds[found[2]]}" if found and found[2] in kinds else hook


def submodule(site: str | None) -> dict[str, Any]:
    """dictionary_learning's `layer` and `submodule_name` of a site. Of a kind of site that the
    library has no name for the layer alone; a module by its path, without a layer."""
    layer, kind = _layer_and_kind(site)
    if kind in SUBMODULES:
        return {"layer": int(layer), "submodule_name": f"{kind}_layer_{int(layer)}"}
    if kind in HOOKS:
        return {"layer": int(layer)}
    return {"submodule_name": site} if site else {}


def site_of_submodule(layer: int | None, name: str | None) -> str | None:
    """The site that dictionary_learning's trainer recorded; any other name as it is."""
    kind = (name or "").removesuffix(f"_layer_{layer}")
    return f"layers.{layer}.{kind}" if layer is not None and kind in SUBMODULES else name


def _layer_and_kind(site: str | None) -> tuple[str, str]:
    found = re.fullmatch(r"layers\.([0-9]{1,6})\.(\w+)", site or "")
    return (found[1], found[2]) if found else ("", "")


def context_length(provenance: Mapping[str, Any]) -> int | None:
    """Tokens of the longest training context, as far as an SAE's provenance tells.

    Raises:
        InputError: it tells of something else than a number of tokens.
    """
    context = provenance.get("context")
    known = context if isinstance(context, Mapping) else {}
    length = known.get("length", known.get("high"))
    found: int | None = fit(length, int | None, "provenance.context: length")
    return found
