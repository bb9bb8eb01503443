"""The cost of a grid against closed forms."""

import pytest

from architectures import GatedRIL1SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.ablation import Data
from sae_bench.activations import TopK
from sae_bench.arm import Arm
from sae_bench.cost import RATE, Cost, need_at, products
from sae_bench.penalties import L0
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.streamed import Streamed
from sae_bench.waves import Need, memory_need

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
    assert cost.streamed == 0
    assert "the language model and evaluation not counted" in str(cost)
    needs = [memory_need(arm, 24) for arm in arms[:2]]
    assert cost.need == Need(*(max(sizes) for sizes in zip(*needs, strict=True)))


@pytest.mark.parametrize("architecture", [ReLUSAE, JumpReLUSAE, GatedRIL1SAE])
def test_memory_at_a_width_that_is_not_built(architecture: type[SparseAutoencoder]) -> None:
    arm = Arm(architecture, 40, RECIPE)
    assert need_at(arm, 100) == memory_need(arm, 100)


def test_a_stream_and_its_total() -> None:
    """The model runs for the longest arm; what two grids have on disk together counts once."""
    site = "layers.3.mlp_out"
    data = Streamed(model="google/gemma-2-2b", site=site, tokens=100, held_out_tokens=20)
    long, short = Arm(ReLUSAE, 40, RECIPE), Arm(ReLUSAE, 40, RECIPE.replace(tokens=128))
    assert data.width == 2304
    one, other = Cost.of([long, short], data, 2304), Cost.of([short], data, 2304)
    a_token = 4 * 2 * 2304 * (3 * 9216 + 2 * 256 * 12)
    assert (one.streamed, other.streamed) == (960 * a_token, 128 * a_token)
    assert "hours of the language model for every wave" in str(one)
    total = Cost.total([(data, one), (data, other), (data.replace(site="layers.4.mlp_out"), other)])
    assert (total.arms, total.tokens) == (4, 960 + 3 * 128)
    assert total.streamed == (960 + 2 * 128) * a_token
    assert total.stored == 2 * 120 * 2304 * 4
    assert total.need == one.need


def test_the_papers_setting() -> None:
    """arXiv 2407.14435: 131k latents on 8B tokens of Gemma 2 9B's residual stream."""
    arm = Arm(JumpReLUSAE, 2**17, Recipe(tokens=8_000_000_000))
    data = Data(tokens=8_000_000_000, held_out_tokens=0, dtype="bfloat16")
    cost = Cost.of([arm], data, d_in=3584)
    assert cost.flop == pytest.approx(3.76e19, rel=1e-3)
    assert cost.hours == pytest.approx(26.1, rel=1e-2)
    assert cost.stored == pytest.approx(57.3e12, rel=1e-2)
    assert "26.1 hours of a GPU at 4e+14 FLOP/s" in str(cost)
