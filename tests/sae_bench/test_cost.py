"""The cost of a grid against closed forms."""

import pytest

from architectures import GatedRIL1SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.ablation import Data
from sae_bench.activations import TopK
from sae_bench.arm import Arm
from sae_bench.cost import RATE, Cost, products
from sae_bench.penalties import L0
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder

RECIPE = Recipe(tokens=1000, batch_size=64)
DATA = Data(tokens=5000, held_out_tokens=1000, dtype="bfloat16")


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        (ReLUSAE, 5),
        (JumpReLUSAE, 5),
        (TopKSAE, 5),
        (GatedSAE, 7),  # and its auxiliary reconstruction, with a frozen decoder: forth and back
        (GatedRIL1SAE, 8),  # which is not frozen here
    ],
)
def test_products_of_a_step(architecture: type[SparseAutoencoder], count: int) -> None:
    slots = {"activation": TopK(3)} if architecture is TopKSAE else {}
    assert products(Arm(architecture, 40, RECIPE, slots=slots)) == count


def test_a_grid() -> None:
    skipped = Arm(TopKSAE, 40, RECIPE, slots={"activation": TopK(3), "penalty": L0(1.0)})
    arms = [Arm(ReLUSAE, 40, RECIPE), Arm(GatedSAE, 30, RECIPE.replace(tokens=128)), skipped]
    cost = Cost.of(arms, DATA, d_in=24)
    assert cost.arms == 2
    assert cost.tokens == 960 + 128  # whole batches
    assert cost.flop == 2 * 24 * (960 * 40 * 5 + 128 * 30 * 7)
    assert cost.hours == cost.flop / RATE / 3600
    assert cost.stored == 6000 * 24 * 2


def test_the_papers_setting() -> None:
    """arXiv 2407.14435: 131k latents on 8B tokens of Gemma 2 9B's residual stream."""
    arm = Arm(JumpReLUSAE, 2**17, Recipe(tokens=8_000_000_000))
    data = Data(tokens=8_000_000_000, held_out_tokens=0, dtype="bfloat16")
    cost = Cost.of([arm], data, d_in=3584)
    assert cost.flop == pytest.approx(3.76e19, rel=1e-3)
    assert cost.hours == pytest.approx(26.1, rel=1e-2)
    assert cost.stored == pytest.approx(57.3e12, rel=1e-2)
    assert "26 hours of a GPU at 4e+14 FLOP/s" in str(cost)
