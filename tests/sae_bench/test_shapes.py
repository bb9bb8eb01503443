"""What is known of a model before it is loaded, against a small one of the same make."""

import pytest
from torch import nn

from sae_bench.shapes import SHAPES, Shape
from sae_bench.sites import resolve_site
from tests.tiny import tiny_model

TINY = Shape(d_model=32, d_mlp=48, d_head=12, heads=4, groups=2)


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "mlp_out", "attn_z"])
def test_widths_and_weights(kind: str) -> None:
    model, site = tiny_model("gemma2"), f"layers.1.{kind}"
    assert TINY.width(site) == resolve_site(model, site).d_in
    modules = [each for layer in model.layers[:2] for each in layer.modules()]
    weights = sum(each.weight.numel() for each in modules if isinstance(each, nn.Linear))
    assert TINY.flop(site) == 2 * weights


def test_a_module_has_no_known_width() -> None:
    assert TINY.width("model.layers.1.self_attn") is None
    assert TINY.flop("model.layers.1.self_attn") == 0


def test_gemma_2_9b_has_nine_billion_weights() -> None:
    """With its embedding of 256,000 tokens."""
    shape = SHAPES["google/gemma-2-9b"]
    assert shape.flop("layers.41.resid_post") / 2 + 256_000 * 3584 == pytest.approx(
        9.24e9, rel=1e-3
    )
