"""r_L0 of a run's arms: the table, its figure, and runs without a language model."""

from pathlib import Path

import pytest

from ablations import architectures
from ablations._attribution import against_l0, attribution
from sae_bench.ablation import Finished
from sae_bench.results import Results
from sae_bench.run import run
from tests.grids import four_architectures, lm_cache, tensor_cache
from tests.tiny import tiny_model

PRESET = architectures.PRESETS["study"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("run")
    cache = lm_cache(tiny_model("llama"), tmp_path_factory.mktemp("cache"))
    preset = PRESET.replace(data=PRESET.data.replace(lm_tokens=200))
    table = run(four_architectures()[:4], cache, out=out, device="cpu", lm_tokens=0)
    return Finished(preset, table, out, cache)


def test_one_row_an_arm(finished: Finished) -> None:
    found = attribution(finished)
    assert list(found) == ["arm", "r_l0", "r_l0_low", "r_l0_high", "r_l0_tokens"]
    assert list(found["arm"]) == list(finished.table["arm"])
    assert found["r_l0"].between(0, 1).all()
    assert found["r_l0_tokens"].between(1, 200).all()
    (axes,) = against_l0(found, finished.table).axes
    names = {line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert names == set(finished.table["architecture"])


def test_architectures_draw_it(finished: Finished) -> None:
    frequencies = Results.read(finished.folder).frequencies
    results = Results(finished.table, frequencies, {"attribution": attribution(finished)})
    assert "r_l0_vs_l0" in architectures.figures(results)
    bare = Results(finished.table, frequencies)
    assert "r_l0_vs_l0" not in architectures.figures(bare)


def test_nothing_without_a_language_model(finished: Finished, tmp_path: Path) -> None:
    other = Finished(finished.preset, finished.table, finished.folder, tensor_cache())
    assert attribution(other).empty
    switched_off = finished.preset.replace(data=finished.preset.data.replace(lm_tokens=0))
    off = Finished(switched_off, finished.table, finished.folder, finished.cache)
    assert attribution(off).empty
