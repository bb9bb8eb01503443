"""State of threshold gradients: what is trained and measured, and what the answer makes of it."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ablations import _threshold_measures, _threshold_noise, _threshold_training, kde_state
from ablations._estimators import LINES, STATES, line, lines, panel
from sae_bench.ablation import Finished
from sae_bench.contrasts import Interval
from sae_bench.files import write_table
from sae_bench.kernels import Rectangle
from sae_bench.results import Results
from sae_bench.run import run
from tests.grids import tensor_cache

STUDY = kde_state.STUDY
NONE = pd.DataFrame()


# -- the grid -------------------------------------------------------------------------------------


def test_every_line_has_the_same_arms() -> None:
    parts = STUDY.parts()
    assert [len(kde_state.arms(part)) for part in parts.values()] == [3, 230, 80]
    arms = kde_state.arms(parts["training"])
    table = pd.DataFrame([arm.columns() for arm in arms])
    table = table.assign(line=line(table["kernel"]))
    assert Counter(table["line"]) == dict.fromkeys(LINES, 23)
    assert len({arm.key for arm in kde_state.arms(STUDY)}) == 233
    assert all(arm.ends_warm and not arm.objection for arm in kde_state.arms(STUDY))
    cell = ["coefficient", "threshold_lr", "seed", "data_seed"]
    first, *others = (set(map(tuple, part[cell].to_numpy())) for _, part in table.groupby("line"))
    assert all(each == first for each in others)
    paired = _threshold_training.replicates(table)
    assert (paired["seed"] == paired["data_seed"]).all()
    assert len(paired) == 200


def test_lower_rates_are_those_of_every_line() -> None:
    lower = pd.DataFrame([arm.columns() for arm in kde_state.arms(STUDY.parts()["training-lower"])])
    rows = lower.assign(line=line(lower["kernel"])).groupby("line")
    assert set(rows["coefficient"].unique().map(tuple)) == {(4.5e-4,)}
    assert {tuple(sorted(set(rates))) for _, rates in rows["threshold_lr"]} == {(0.003, 0.01)}
    arms = [arm for part in STUDY.parts().values() for arm in kde_state.arms(part)]
    table = pd.DataFrame([arm.columns() for arm in arms[3:]])  # those of noise come first
    table = _threshold_training.replicates(table)
    assert _threshold_training.base_rate(table) == 0.1
    assert _threshold_training.middle_coefficient(table) == 4.5e-4


def test_lines_are_recognised_by_their_labels() -> None:
    made = lines(Rectangle(0.02))
    assert tuple(made) == LINES
    assert list(line(pd.Series([each.label for each in made.values()]))) == list(LINES)


def test_the_panel_has_each_estimator_once() -> None:
    estimators = panel({Rectangle(0.02): (2, 4), Rectangle(0.01): (8,)})
    assert len(set(estimators)) == len(estimators) == 2 * (2 + 3 * 2) + 2 * (2 + 3)


# -- measures of an arm ---------------------------------------------------------------------------


def test_moved_counts_thresholds_beyond_half_their_start() -> None:
    theta = np.array([0.04, 0.0199, 0.021, 0.059, 0.0601, 1.0])
    assert _threshold_measures.moved(theta, 0.04) == pytest.approx(0.5)


def test_spread_is_the_median_standard_deviation_of_logarithms() -> None:
    log_theta = np.array([[0.0, 1.0, -2.0, 5.0], [0.2, 1.4, -1.0, 9.0]])
    fired = np.array([True, True, True, False])
    expected = 0.4 / math.sqrt(2)  # two values d apart: d / sqrt(2)
    assert _threshold_measures.spread(np.exp(log_theta), fired) == pytest.approx(expected)
    scaled = np.exp(log_theta) * 7  # the unit does not matter
    assert _threshold_measures.spread(scaled, fired) == pytest.approx(expected)
    assert math.isnan(_threshold_measures.spread(np.exp(log_theta), ~fired & fired))


def test_steps_until_codes_stay_sparse_enough() -> None:
    history = pd.DataFrame({"step": [2, 4, 6, 8], "l0": [30.0, 300.0, 64.0, 40.0]})
    assert _threshold_measures.steps_to(history, 64) == 6
    assert _threshold_measures.steps_to(history, 50) == 8
    assert _threshold_measures.steps_to(history, 300) == 2
    assert math.isnan(_threshold_measures.steps_to(history, 30))


def test_diverged_arms_are_counted() -> None:
    rows = [
        ("BatchKDE(Rectangle(0.02))", 0.1, "trained"),
        ("MomentumKDE(Rectangle(0.02))", 0.3, "failed"),
    ]
    table = pd.DataFrame(rows * 2, columns=["kernel", "threshold_lr", "status"])
    said = _threshold_training.diverged(table.assign(line=line(table["kernel"])))
    assert said == "  Diverged: momentum 2 of 2 arms at threshold lr 0.3."


# -- noise in relation ----------------------------------------------------------------------------


def noise_rows(tokens: int = 1000) -> pd.DataFrame:
    """By hand: slope 2, T = 8 leaves 1/8 of a step's variance and all of the integrated one; exact
    jumps a quarter of both; the silent bucket has nothing."""
    made: list[dict[str, Any]] = []
    kernel = Rectangle(0.02)
    buckets = (("[-inf, -4.0)", 50, 0.0), ("[-3.0, -2.0)", 100, 4.0), ("[-2.0, -1.0)", 300, 16.0))
    for index, (bucket, latents, variance) in enumerate(buckets):
        for name, estimator in lines(kernel).items():
            exact = 0.25 if "exact" in name else 1.0
            memory = 8 if any(each in name for each in ("momentum", "mean", "window")) else 1
            for times in (1, 8) if name.startswith("batch") else (1,):
                here = variance * exact / memory / times
                made.append(
                    {
                        "estimator": estimator.label,
                        "coefficient": "ExactJump" if "exact" in name else "StraightThrough",
                        "bandwidth": 0.02,
                        "steps": memory,
                        "batch_size": 512 * times,
                        "bucket": bucket,
                        "latents": latents,
                        "frequency": 10.0 ** (index - 3) * (variance > 0),
                        "bias": -exact,
                        "bias_se": 0.02,
                        "variance": here,
                        "integrated_variance": variance * exact / times,
                        "relative_noise": math.sqrt(here) / 2 if variance else math.nan,
                    }
                )
    return pd.DataFrame(made).assign(arm=f"arm-{tokens}", train_tokens=tokens)


def test_ratios_to_the_batch_estimate() -> None:
    rows = _threshold_noise.relative(noise_rows())
    active = rows[rows["frequency"] > 0].set_index("name")
    assert np.allclose(active["slope"], 2)
    expected = {
        "batch": (1, 1, 0.5),
        "batch, exact jump": (0.25, 0.25, 0.125),
        "window": (1 / 8, 1, 0.5),
        "window, exact jump": (1 / 32, 0.25, 0.125),
        "batch x 8": (1 / 8, 1, 0.5),  # 8 batches a step: nothing gained at equal tokens
    }
    for name, values in expected.items():
        measured = active.loc[name, list(_threshold_noise.MEASURES)].to_numpy(float)
        assert np.allclose(measured, values), name
    silent = rows[rows["frequency"] == 0]
    assert silent[list(_threshold_noise.MEASURES)].isna().all(axis=None)


def test_means_over_buckets_are_weighted_by_latents() -> None:
    rows = _threshold_noise.relative(noise_rows())
    batch = _threshold_noise.overall(rows[rows["times"] == 1], "noise", "name")["batch"]
    assert batch == pytest.approx((100 * 1 + 300 * 2) / 400)


def test_noise_is_answered_and_drawn() -> None:
    noise = pd.concat([noise_rows(1000), noise_rows(4000)])
    said = _threshold_noise.described(noise)
    conclusion = said.splitlines()[-1]
    assert "window over 8 steps leaves 12% of the batch estimate's variance of a step" in conclusion
    assert "100% of its integrated variance at equal tokens" in conclusion
    assert "leave 25% of a step's and 25% of the integrated" in conclusion
    assert "batch 0.5, window 0.5, persistent bandwidth 0.5 (standard error about 0.01)" in said
    assert len(_threshold_noise.by_frequency(noise).axes) == 6
    assert len(_threshold_noise.against_bias(noise).axes[0].lines) == len(LINES)


# -- training -------------------------------------------------------------------------------------

RATES = (0.03, 0.1, 0.3)


def training_rows(
    effect: float = 0.0, exact: float = 0.0, rate_gain: float = 0.0, seeds: int = 4
) -> pd.DataFrame:
    """log FVU = -0.5 log L0, plus the effects of any state and of exact jumps; windows gain
    `rate_gain` more at the lowest rate."""
    made = []
    for name, estimator in lines(Rectangle(0.02)).items():
        shift = effect * (not name.startswith("batch")) + exact * ("exact" in name)
        for seed in range(seeds):
            for index, (coefficient, l0) in enumerate(((1e-4, 90.0), (4e-4, 45.0), (1e-3, 14.0))):
                for rate in RATES if index == 1 else RATES[1:2]:
                    here = l0 * (1 + 0.1 * (rate - 0.1)) * (1 + 0.01 * math.sin(seed + len(name)))
                    gain = rate_gain * (rate == RATES[0] and name.startswith("window"))
                    jitter = 0.001 * math.sin(3 * seed + len(name))
                    fvu = math.exp(-0.5 * math.log(here) + shift + gain + jitter)
                    made.append(
                        {
                            "arm": f"{name}-{seed}-{coefficient}-{rate}",
                            "kernel": estimator.label,
                            "architecture": "JumpReLU",
                            "penalty": "L0",
                            "setting": f"{name}-{coefficient}-{rate}",
                            "coefficient": coefficient,
                            "threshold_lr": rate,
                            "seed": seed,
                            "data_seed": seed,
                            "eval_set": "held-out",
                            "status": "trained",
                            "l0": here,
                            "fvu": fvu,
                            "delta_lm_loss": math.nan,
                        }
                    )
    return pd.DataFrame(made)


@pytest.mark.parametrize(("effect", "word"), [(-0.1, "better"), (0.1, "worse"), (0.0, "undecided")])
def test_an_effect_of_state_is_found(effect: float, word: str) -> None:
    table = _threshold_training.trained(training_rows(effect, exact=-0.2))
    found = _threshold_training.effects(table)
    for _, rows in found.groupby(["way", "state"]):
        by = rows.set_index("contrast")
        assert by.loc["A", "mean"] == pytest.approx(effect, abs=0.003)
        assert by.loc["B", "mean"] == pytest.approx(-0.2, abs=0.003)
        interval = Interval(*(float(by.loc["A", each]) for each in ("mean", "low", "high")), 4)
        assert _threshold_training.word(interval) == word
    assert set(found["places"]) == {5}  # 16 to 64
    said = kde_state.answer(Results(table, NONE))
    assert "4 paired seeds" in said
    assert "Threshold lr chosen" in said


def test_states_are_drawn_against_the_batch_estimate_of_their_pull() -> None:
    """The effect of exact jumps, which the batch estimate has, too, is none here."""
    table = training_rows(-0.1, exact=-0.2)
    first, exact = kde_state.figures(Results(table, NONE))["relative_fvu_vs_l0"].axes
    for axes in (first, exact):
        drawn = {str(line.get_label()): line for line in axes.lines}
        assert set(STATES) - set(drawn) == {"batch"}
        assert drawn["window"].get_ydata() == pytest.approx(100 * math.expm1(-0.1), abs=0.5)


def test_rates_are_chosen_by_the_other_seeds_at_equal_l0() -> None:
    table = _threshold_training.trained(training_rows(rate_gain=-0.05))
    gains = _threshold_training.gains(table)
    assert gains.loc["window", 0.03].to_numpy() == pytest.approx(-0.05, abs=0.002)
    assert (gains[0.1] == 0).all()
    chosen = _threshold_training.chosen(table).set_index(["line", "seed"])
    assert (chosen.loc["window", "rate"] == 0.03).all()
    found = _threshold_training.effects(table).set_index(["way", "state", "contrast"])["mean"]
    one, own = _threshold_training.WAYS
    assert found[one, "window", "A"] == pytest.approx(0, abs=0.003)
    assert found[own, "window", "A"] == pytest.approx(-0.05, abs=0.003)


def test_no_seed_chooses_for_itself() -> None:
    """One seed is far better at a rate at which the others are worse: it may not have it."""
    rows = training_rows()
    windows = rows["kernel"].str.startswith("WindowKDE") & (rows["threshold_lr"] == 0.3)
    factor = rows["seed"].map({0: 0.5, 1: 1.1, 2: 1.1, 3: 1.1})
    rows.loc[windows, "fvu"] *= factor[windows]
    chosen = _threshold_training.chosen(_threshold_training.trained(rows))
    of_first = chosen[(chosen["seed"] == 0) & (chosen["line"] == "window")]
    assert of_first["rate"].item() != 0.3


def test_one_seed_keeps_the_base_rate() -> None:
    table = _threshold_training.trained(training_rows(rate_gain=-0.05, seeds=1))
    assert set(_threshold_training.chosen(table)["rate"]) == {0.1}


# -- from end to end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Both parts, a few steps long; two seeds, two data orders of the first."""
    recipe = STUDY.recipe.replace(
        tokens=256, batch_size=32, lr_warmup=1, lr_decay=1, penalty_warmup=2
    )
    small = STUDY.replace(
        d_sae=24,
        recipe=recipe,
        share=0.75,
        stages=(0.5, 1.0),
        coefficients=(1e-3, 3e-2),
        rates=(0.03, 0.1),
        seeds=(0, 1),
        lower=(),
        bandwidths=(),
        memories=(2,),
        block=4,
    )
    out, cache = tmp_path_factory.mktemp("run"), tensor_cache(d_in=16)
    for name, part in small.parts().items():
        table = run(kde_state.arms(part), cache, out=out / name, device="cpu")
        finished = Finished(part, table, out / name, cache)
        (out / name / "further").mkdir()
        for key, measure in kde_state.FURTHER.items():
            write_table(out / name / "further" / f"{key}.parquet", measure(finished))
    return Results.read(out)


def test_everything_is_measured(results: Results) -> None:
    assert set(results.table["status"]) == {"trained"}
    noise, thresholds, spread = (results.further[n] for n in ("noise", "thresholds", "spread"))
    assert set(noise["part"]) == {"noise"}
    assert noise["arm"].nunique() == noise["train_tokens"].nunique() == 2
    assert set(line(noise["estimator"])) == set(LINES)
    training = results.table[results.table["part"] == "training"]
    assert set(thresholds["arm"]) == set(training["arm"])
    assert thresholds["moved"].between(0, 1).all()
    assert (thresholds["theta"] > 0).all()
    assert Counter(spread["line"]) == dict.fromkeys(LINES, 2)
    assert set(spread["orders"]) == {2}
    assert (spread["spread"] > 0).all()


def test_thresholds_are_in_units_of_training(results: Results) -> None:
    """A few steps at a low rate leave them near their start, whatever the activations' scale."""
    rows = results.table.merge(results.further["thresholds"], on="arm")
    slow = rows[(rows["threshold_lr"] == 0.03) & rows["kernel"].str.startswith("BatchKDE")]
    assert slow["theta"].to_numpy() == pytest.approx(kde_state.START, rel=0.5)
    assert (slow["activation_scale"] - 1).abs().min() > 0.5


def test_the_answer_and_the_figures(results: Results, tmp_path: Path) -> None:
    said = kde_state.answer(results)
    assert "a window over 2 steps leaves" in said
    assert "2 paired seeds" in said
    assert "spread, lr 0.03" in said
    assert set(kde_state.figures(results)) == set(kde_state.CAPTIONS)
    results.publish("kde_state", tmp_path)
    assert kde_state.answer(Results.published("kde_state", tmp_path)) == said


@pytest.mark.parametrize("part", ["noise", "training"])
def test_one_part_alone(results: Results, part: str) -> None:
    """As the first part ends, the other is not there yet."""
    further = {key: rows[rows["part"] == part] for key, rows in results.further.items()}
    alone = results.table[results.table["part"] == part]
    held = Results(alone, NONE, {key: rows for key, rows in further.items() if len(rows)})
    assert kde_state.answer(held)
    assert kde_state.figures(held)


def test_states_have_colours_of_their_own() -> None:
    looks = [_threshold_noise.look(name) for name in LINES]
    assert len({look["color"] for look in looks} | {_threshold_noise.CONTROL["color"]}) == 6
    assert len({(look["color"], look["linestyle"]) for look in looks}) == len(STATES) * 2
