"""The default grid, at its real settings on paper and at a tiny size in practice."""

from collections import Counter
from pathlib import Path

import pytest

from ablations import quickstart
from sae_bench.ablation import Data
from sae_bench.arm import Arm
from sae_bench.results import Results
from sae_bench.run import run
from sae_bench.text import Documentation, Excerpts
from tests.grids import tensor_cache

PRESET = next(iter(quickstart.PRESETS.values()))
ARMS = quickstart.arms(PRESET)


def test_four_architectures_at_four_settings_or_more() -> None:
    counts = Counter(arm.name for arm in ARMS)
    assert set(counts) == {"ReLU", "TopK", "Gated", "JumpReLU"}
    assert min(counts.values()) >= 4
    assert len({arm.key for arm in ARMS}) == len(ARMS)
    assert not any(arm.objection for arm in ARMS)


def test_topk_spans_the_range_of_l0() -> None:
    k = sorted(arm.slots["activation"].k for arm in ARMS if arm.name == "TopK")
    assert 8 <= k[0] <= 16
    assert 100 <= k[-1] <= 200


def test_sparsity_is_the_only_axis_of_an_architecture() -> None:
    for name in ("ReLU", "TopK", "Gated", "JumpReLU"):
        records = [arm.record() for arm in ARMS if arm.name == name]
        for record in records:
            record["slots"].pop("penalty")
            record["slots"].pop("activation")
        assert all(record == records[0] for record in records)


def test_comparisons_are_paired() -> None:
    """All arms see the same batches, have the same width and start from the same decoder."""
    recipes = [arm.recipe for arm in ARMS]
    assert len({(recipe.batch_size, recipe.data_seed, recipe.steps) for recipe in recipes}) == 1
    assert len({(arm.d_sae, arm.seed) for arm in ARMS}) == 1


def test_it_needs_no_hub() -> None:
    assert PRESET.data.model == Data().model == "smollm2"
    assert isinstance(PRESET.data.text, Excerpts)
    assert isinstance(PRESET.data.text.text, Documentation)
    assert 90_000 <= PRESET.data.tokens <= 110_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Arm], Path]:
    """The same grid, 130 latents wide and four steps long."""
    recipe = PRESET.recipe.replace(tokens=256, batch_size=64)
    small = PRESET.replace(d_sae=130, recipe=recipe)
    arms, out = quickstart.arms(small), tmp_path_factory.mktemp("run")
    run(arms, tensor_cache(d_in=16), out=out, device="cpu")
    return arms, out


def test_every_arm_trains(finished: tuple[list[Arm], Path]) -> None:
    arms, out = finished
    table = Results.read(out).table
    assert len(arms) == len(ARMS) == len(table)
    assert set(table["status"]) == {"trained"}


def test_figures_come_from_the_tables(finished: tuple[list[Arm], Path]) -> None:
    results = Results.read(finished[1])
    drawn = quickstart.figures(results)
    assert list(drawn) == ["fvu_vs_l0", "frequency_histograms"]  # a tensor has no language model
    (axes,) = drawn["fvu_vs_l0"].axes
    points = {c.get_label(): len(c.lines[0].get_xdata()) for c in axes.containers}
    shown = results.table[results.table["l0"] > 0]
    assert points == Counter(shown["architecture"])
    panels = [axes.get_title() for axes in drawn["frequency_histograms"].axes]
    assert panels == ["ReLU", "TopK", "Gated", "JumpReLU"]


def test_the_answer_is_text(finished: tuple[list[Arm], Path]) -> None:
    assert "one seed" in quickstart.answer(Results.read(finished[1]))
