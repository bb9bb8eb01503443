"""Where in a model an SAE belongs, in the words of other libraries."""

import re
from collections.abc import Mapping
from typing import Any

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_z": "attn.hook_z",
}
"""Kinds of sites (`sae_bench.sites`), and the hooks of TransformerLens that give the same."""


def hook_name(site: str) -> str:
    """The TransformerLens hook of a site `layers.N.KIND`; any other site by its own name."""
    layer, kind = _split(r"layers\.(\d+)\.(.+)", site)
    return f"blocks.{layer}.{HOOKS[kind]}" if kind in HOOKS else site


def site_of_hook(hook: Any) -> str | None:
    """The site that a TransformerLens hook gives; any other name as it is, None where there is
    none."""
    if not isinstance(hook, str):
        return None
    kinds = {name: kind for kind, name in HOOKS.items()}
    layer, name = _split(r"blocks\.(\d+)\.(.+)", hook)
    return f"layers.{layer}.{kinds[name]}" if name in kinds else hook


def _split(pattern: str, name: str) -> tuple[str, str]:
    found = re.fullmatch(pattern, name)
    return (found[1], found[2]) if found else ("", "")


def context_length(provenance: Mapping[str, Any]) -> int | None:
    """Tokens of the longest training context, as far as an SAE's provenance tells."""
    context = provenance.get("context")
    known = context if isinstance(context, Mapping) else {}
    return known.get("length", known.get("high"))
