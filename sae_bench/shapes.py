"""Sizes of language models that are too large to be loaded for a look."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

SITE = re.compile(r"layers\.(\d+)\.(resid_pre|resid_post|mlp_out|attn_z)")


@dataclass(frozen=True)
class Shape:
    """A transformer with gated MLPs and grouped keys and values.

    Args:
        d_model, d_mlp, d_head: widths of the residual stream, an MLP, an attention head.
        heads, groups: number of query heads, and of key and value heads.
    """

    d_model: int
    d_mlp: int
    d_head: int
    heads: int
    groups: int

    def width(self, site: str) -> int | None:
        """d_in at a site; None if its name is that of a module."""
        found = SITE.fullmatch(site)
        if found is None:
            return None
        return self.heads * self.d_head if found[2] == "attn_z" else self.d_model

    def flop(self, site: str) -> int:
        """FLOP a token of a forward pass up to a site, 2 a weight of each layer to its own, which
        counts whole: 2 (layer + 1) d_model (3 d_mlp + 2 d_head (heads + groups)). Attention scores
        are not in it; 0 if the site's name is that of a module."""
        found = SITE.fullmatch(site)
        layers = int(found[1]) + 1 if found else 0
        a_layer = 3 * self.d_mlp + 2 * self.d_head * (self.heads + self.groups)
        return 2 * layers * self.d_model * a_layer


SHAPES: Mapping[str, Shape] = {
    "google/gemma-2-2b": Shape(d_model=2304, d_mlp=9216, d_head=256, heads=8, groups=4),
    "google/gemma-2-9b": Shape(d_model=3584, d_mlp=14_336, d_head=256, heads=16, groups=8),
}
"""By the model's name."""
