"""The factorial on known features: what is trained and measured, and what the answer says."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablations import synthetic
from ablations._lines import CELLS, cell
from architectures import JumpReLUSAE
from sae_bench import ablation
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.cli import main
from sae_bench.contrasts import Interval
from sae_bench.results import Results
from sae_bench.sae import SparseAutoencoder
from sae_bench.study import study
from sae_bench.synthetic import SyntheticFeatures

STUDY = synthetic.STUDY
NONE = pd.DataFrame()


# -- the grid -------------------------------------------------------------------------------------


def test_six_cells_in_three_worlds() -> None:
    parts = STUDY.parts()
    arms = [arm for part in parts.values() for arm in synthetic.arms(part)]
    assert len({arm.key for arm in arms}) == len(synthetic.arms(STUDY)) == 144
    assert all(arm.ends_warm and not arm.objection for arm in arms)
    named = cell(pd.DataFrame([arm.columns() for arm in arms]))
    assert Counter(named) == dict.fromkeys(CELLS, 24)
    assert len({part.data for part in parts.values()}) == 3
    for name, settings in zip(CELLS, STUDY.coefficients, strict=True):
        assert (np.diff(settings) > 0).all(), name


def test_worlds_differ_in_directions_and_tokens() -> None:
    small = synthetic.Made(SyntheticFeatures(4, 6, 2.0), tokens=50)
    one, two = (small.world(seed).cache() for seed in (1, 2))
    again = small.world(1).cache()
    assert one.record() == again.record() != two.record()
    assert (one.rows, one.held_out is not None) == (50, True)


# -- what an SAE has found ------------------------------------------------------------------------

FEATURES = SyntheticFeatures(16, 8, 2.0, seed=3, decay=0.5)


def perfect() -> SparseAutoencoder:
    """Reads every feature off exactly, in an order of its own, above 0.001."""
    sae = JumpReLUSAE(16, 8, activation=JumpReLU(LogThreshold(1e-3)))
    order = torch.arange(8).flip(0)
    directions = FEATURES.directions()
    with torch.no_grad():
        sae.W_dec.copy_(directions[order])
        sae.W_enc.copy_(torch.linalg.pinv(directions)[:, order])
    return sae


def measured(sae: SparseAutoencoder) -> dict[str, float]:
    x, codes = FEATURES.sample(4_000, 0)
    return synthetic.found_by(sae, FEATURES, x, codes)


def test_a_perfect_sae_recovers_everything() -> None:
    found = measured(perfect())
    assert found["cosine"] == pytest.approx(1, abs=1e-5)
    assert found["recovered"] == found["rare"] == found["precision"] == 1
    assert 0.995 < found["recall"] < 1  # codes below 0.001 are missed


def test_features_that_were_not_found_are_missed() -> None:
    sae = perfect()
    with torch.no_grad():
        sae.W_dec[:2] = torch.linalg.qr(FEATURES.directions().T, mode="complete").Q[:, -2:].T
    found = measured(sae)  # the first two rows were those of the two rarest features
    assert found["recovered"] == 0.75
    assert found["rare"] == 0.5
    assert found["precision"] == 1


def test_latents_that_always_fire_are_not_precise() -> None:
    sae = perfect()
    with torch.no_grad():
        sae.b_enc += 10
    found = measured(sae)
    assert found["recall"] == 1
    assert found["precision"] == pytest.approx(0.25, abs=0.02)  # 2 of 8


def test_nothing_recovered_has_no_precision() -> None:
    sae = perfect()
    with torch.no_grad():
        sae.W_dec.copy_(-sae.W_dec)
    found = measured(sae)
    assert found["recovered"] == 0
    assert math.isnan(found["precision"])


# -- the answer -----------------------------------------------------------------------------------


def planted(penalty: float, activation: float) -> Results:
    """log FVU = -0.5 log L0 plus the effects of L0 and of JumpReLU."""
    rows, known = [], []
    for arm in synthetic.arms(STUDY):
        columns = arm.columns()
        name = cell(pd.DataFrame([columns])).item()
        place = STUDY.coefficients[list(CELLS).index(name)].index(columns["coefficient"])
        jitter = 0.003 * (arm.seed - 1) * (1 + 0.1 * len(name) % 1)
        l0 = (28, 22, 18, 15, 12, 8, 5, 3.5)[place]
        shift = activation * name.startswith("JumpReLU") + penalty * ("+ L0" in name)
        rows.append(
            columns
            | {"eval_set": "held-out", "l0": l0, "delta_lm_loss": math.nan}
            | {"fvu": math.exp(-0.5 * math.log(l0) + shift + jitter)}
            | {"l0_share_above_10pct": 0.5 + jitter, "dead": 0.0}
        )
        share = 0.5 - shift + jitter
        known.append({"arm": arm.key, "true_share": 0.42} | dict.fromkeys(synthetic.KNOWN, share))
    return Results(pd.DataFrame(rows), NONE, {"recovered": pd.DataFrame(known)})


ALL = "4, 6, 8, 12, 16, 24"


@pytest.mark.parametrize(
    ("penalty", "activation", "lower", "more"),
    [
        (-0.2, -0.1, "falls", "rises"),
        (0.2, 0.1, "rises", "falls"),
        (0.0, 0.0, *["not decided"] * 2),
    ],
)
def test_effects_are_told_place_by_place(
    penalty: float, activation: float, lower: str, more: str
) -> None:
    said = synthetic.answer(planted(penalty, activation)).splitlines()
    for side in ("JumpReLU for ReLU", "L0 for L1"):
        for path in ("theta", "input"):
            assert f"  FVU at matched L0: {side} ({path}) {lower} at L0 {ALL}." in said
            assert (
                f"  features recovered at matched L0: {side} ({path}) {more} at L0 {ALL}." in said
            )
    assert "Of the true L0, 8, 42% is in features that fire on more than 10% of tokens." in said
    (header,) = (i for i, line in enumerate(said) if line == "FVU at matched L0:")
    places = [line.split()[0] for line in said[header + 2 : header + 8]]
    assert places == ALL.split(", ")


def test_effects_that_change_sign() -> None:
    effects = {"4": Interval(-1, -2, -0.5, 3), "8": Interval(0, -1, 1, 3)}
    effects["24"] = Interval(2, 1, 3, 3)
    words = "falls at L0 4; not decided at L0 8; rises at L0 24"
    assert synthetic._directions(effects) == words
    assert synthetic._directions({}) == "has no common range of L0"


def test_one_world_has_no_verdict() -> None:
    every = planted(-0.2, -0.1)
    one = every.table[every.table["seed"] == 0]
    said = synthetic.answer(Results(one, NONE, every.further))
    assert "no verdict" in said
    assert "At L0 8" in said


# -- from end to end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two worlds, a few steps in each."""
    recipe = STUDY.recipe.replace(
        tokens=256, batch_size=64, lr_warmup=1, lr_decay=1, penalty_warmup=2
    )
    small = STUDY.replace(
        data=synthetic.Made(SyntheticFeatures(16, 24, 3.0), tokens=300),
        d_sae=24,
        recipe=recipe,
        coefficients=((1e-4, 1e-2),) * len(CELLS),
        seeds=(0, 1),
    )
    out = tmp_path_factory.mktemp("run")
    return study(ablation.load("synthetic"), small.parts(), out, device="cpu")


def test_a_study_trains_on_what_is_made(results: Results, tmp_path: Path) -> None:
    assert set(results.table["status"]) == {"trained"}
    assert results.table["activation_scale"].nunique() == 2  # a world each
    found = results.further["recovered"]
    assert set(found["arm"]) == set(results.table["arm"])
    assert found["cosine"].between(0, 1).all()
    assert found["true_share"].nunique() == 1  # probabilities are those of all worlds
    assert "2 paired worlds" in synthetic.answer(results)
    assert len(synthetic.figures(results)["frontiers"].axes) == 3
    results.publish("synthetic", tmp_path)
    again = Results.published("synthetic", tmp_path)
    assert synthetic.answer(again) == synthetic.answer(results)


def test_other_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "synthetic", "--model", "gpt2", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "--model: the activations of synthetic are Made, which has no model" in said
