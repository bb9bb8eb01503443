"""Groups are split into waves that fit a budget, by what arms need."""

from sae_bench.arm import Arm
from sae_bench.sae import SparseAutoencoder
from sae_bench.waves import Need, memory_need, waves
from tests.small import D_IN, D_SAE, RECIPE


def test_waves_fill_the_budget_in_order() -> None:
    arms = [Arm(SparseAutoencoder, d_sae, RECIPE) for d_sae in (1, 2, 3, 4)]

    def sizes(lasting: list[int], budget: int, passing: int = 0) -> list[list[int]]:
        needs = [Need(each, passing) for each in lasting]
        return [[arm.d_sae for arm in wave] for wave in waves(arms, needs, budget)]

    assert sizes([3, 3, 3, 3], 6) == [[1, 2], [3, 4]]
    assert sizes([3, 3, 3, 3], 6, passing=1) == [[1], [2], [3], [4]]
    assert sizes([3, 3, 3, 3], 7, passing=1) == [[1, 2], [3, 4]]
    assert sizes([3, 3, 3, 3], 11) == [[1, 2, 3], [4]]
    assert sizes([9, 1, 1, 9], 2) == [[1], [2, 3], [4]]
    assert sizes([1, 1, 1, 1], 0) == [[1], [2], [3], [4]]
    assert list(waves([], [], 5)) == []


def test_memory_need_counts_parameters_four_times() -> None:
    need = memory_need(Arm(SparseAutoencoder, D_SAE, RECIPE), D_IN)
    parameters = 4 * (2 * D_IN * D_SAE + D_IN + D_SAE)
    counters = 8 * D_SAE
    assert need == (3 * parameters + counters, parameters + 10 * 32 * D_SAE * 4)
