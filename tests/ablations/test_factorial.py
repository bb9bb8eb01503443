"""The factorial: what is trained, how it is told apart in a table, and what the answer says."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from ablations import _controls, _documents, factorial
from ablations._controls import compared, from_trained
from ablations._convergence import convergence
from ablations._lines import (
    BRIDGES,
    CELLS,
    CLOSE,
    LINES,
    TRIALS,
    TUNED,
    cell,
    prepared,
    styled,
    trials,
)
from ablations._outcomes import FVU, LOSS, with_shares
from ablations._squares import WAYS, between_paths, by_place, paths, verdict
from sae_bench.ablation import Finished
from sae_bench.contrasts import Interval
from sae_bench.plots import looks
from sae_bench.results import Results
from sae_bench.run import run
from tests.grids import tensor_cache

STUDY = factorial.PRESETS["study"]
ARMS = factorial.arms(STUDY)
PUBLISHED = Path(__file__).parents[2] / "results"
NONE = pd.DataFrame()


def named(arms: list) -> pd.Series:
    return cell(pd.DataFrame([arm.columns() for arm in arms]))


def test_six_cells_with_five_seeds_and_five_bridges_with_three() -> None:
    counts = Counter(named(ARMS))
    assert counts == dict.fromkeys(CELLS, 30) | dict.fromkeys(BRIDGES, 18)
    assert len({arm.key for arm in ARMS}) == len(ARMS) == 270
    assert not any(arm.objection for arm in ARMS)
    assert all(arm.ends_warm for arm in ARMS)


def test_cells_differ_in_activation_penalty_and_path_alone() -> None:
    cells = [arm for arm, name in zip(ARMS, named(ARMS), strict=True) if name in CELLS]
    assert (
        len({(arm.recipe.data_seed, arm.recipe.batch_size, arm.recipe.steps) for arm in cells}) == 1
    )
    for seed in range(5):
        assert Counter(named([arm for arm in cells if arm.seed == seed])) == dict.fromkeys(CELLS, 6)
    assert len({arm.slots["decoder"] for arm in cells}) == 1


def test_settings_go_from_dense_to_sparse() -> None:
    for name, line in LINES.items():
        steps = np.diff(line.settings)
        assert (steps < 0).all() if name == "TopK" else (steps > 0).all()
        assert len(line.settings) == 6


def test_every_line_has_the_same_number_of_trials() -> None:
    assert len({len(trials) for trials in TRIALS.values()}) == 1
    assert set(TRIALS) == set(TUNED) == set(LINES)
    assert all(tuned[0] in TRIALS[name] for name, tuned in TUNED.items())
    square = set(next(iter(WAYS.values())).cells)
    for name, lines in (("tuning", set(LINES)), ("wide-tuning", square)):
        tuning = factorial.PRESETS[name]
        assert not {*tuning.seeds, *tuning.bridge_seeds} & {*STUDY.seeds, *STUDY.bridge_seeds}
        counts = Counter(named(factorial.arms(tuning)))
        assert set(counts) == lines
        assert len(set(counts.values())) == 1


def test_tuning_reads_other_documents() -> None:
    tuned = {document.text for document in factorial.PRESETS["tuning"].data.text.documents()}
    text = list(STUDY.data.text.documents())
    reported = {document.text for document in text[:3_000]}
    assert len(text) > 4_000
    assert len(tuned & reported) < 0.05 * len(tuned)  # copies of a text under two names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All lines, 130 latents wide and a few steps long, with two seeds."""
    recipe = STUDY.recipe.replace(tokens=512, batch_size=64, lr_warmup=1, lr_decay=1)
    small = STUDY.replace(
        d_sae=300, recipe=recipe.replace(penalty_warmup=2), seeds=(0, 1), bridge_seeds=(0,)
    )
    out = tmp_path_factory.mktemp("run")
    run(factorial.arms(small), tensor_cache(d_in=16), out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def finished(folder: Path) -> Results:
    return Results.read(folder)


def test_every_line_trains_and_draws(finished: Results) -> None:
    assert set(finished.table["status"]) == {"trained"}
    assert set(cell(finished.table)) == set(LINES)
    drawn = factorial.figures(finished)
    assert {"fvu_vs_l0", "high_frequency", "frequency_histograms", "effects"} <= set(drawn)
    assert "bridges_fvu_vs_l0" in drawn
    assert isinstance(factorial.answer(finished), str)


def test_thresholds_are_reported_where_they_are_trained(finished: Results) -> None:
    known = finished.table["theta_over_eps"].notna()
    assert (known == (finished.table["activation"].str.startswith("JumpReLU"))).all()
    assert "theta/eps" in factorial.answer(finished)


def synthetic(penalty: float, activation: float, seeds: int = 5) -> pd.DataFrame:
    """The published cells' columns, with log FVU = -0.5 log L0 plus the two effects."""
    pilot = pd.read_csv(PUBLISHED / "tables" / "factorial.csv")
    pilot = pilot[cell(pilot).isin(CELLS)]
    rows = []
    for name, part in pilot.groupby(cell(pilot)):
        first = part.iloc[0]
        shift = activation * name.startswith("JumpReLU") + penalty * ("+ L0" in name)
        for seed in range(seeds):
            for index, l0 in enumerate((8, 16, 32, 64, 128, 256)):
                jitter = 0.002 * np.sin(7 * seed + index + len(name))
                l0 = l0 * (0.95 if index == 0 else 1.02)
                fvu = np.exp(-0.5 * np.log(l0) + shift + jitter)
                changed = {"seed": seed, "l0": l0, "fvu": fvu, "delta_lm_loss": fvu / 3}
                rows.append({**first, **changed, "l0_share_above_10pct": 0.1 - 0.2 * shift})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("penalty", "activation", "word"),
    [
        (-0.2, 0.0, "falls with the penalty"),
        (0.0, -0.2, "falls with the activation"),
        (-0.2, -0.1, "falls with both"),
        (0.0, 0.0, "changes with neither"),
        (0.2, 0.0, "rises with the penalty"),
        (0.2, -0.1, "falls with the activation and rises with the penalty"),
    ],
)
def test_the_answer_names_what_made_the_difference(
    penalty: float, activation: float, word: str
) -> None:
    said = factorial.answer(Results(synthetic(penalty, activation), NONE))
    fvu = [line for line in said.splitlines() if line.startswith("  FVU at matched L0, 4 places, ")]
    assert len(fvu) == 2
    assert all(f"{word}: JumpReLU" in line for line in fvu)
    assert f"  FVU at matched L0 {word} (gradients to theta only*), {word} (" in said
    assert "What would change it" in said
    assert "  under L0: FVU at matched L0" in said
    assert "  under L1: FVU at matched L0" in said


def test_effects_at_each_place() -> None:
    """Straight lines in log-log, -0.2 apart: interpolation and intervals are exact."""
    table = prepared(synthetic(0.0, -0.2, seeds=2))
    shift = -0.2 * table["cell"].str.startswith("JumpReLU")
    table = table.assign(log_fvu=shift - 0.5 * table["log_l0"])
    said = by_place(table, FVU, next(iter(WAYS)))
    assert [line.split(":")[0] for line in said] == [
        f"  FVU at matched L0, L0 {l0}" for l0 in (16, 32, 64, 128)
    ]
    assert all("JumpReLU for ReLU -18.1% [-18.1, -18.1] under L1, -18.1%" in line for line in said)
    assert all("L0 for L1 +0.0%" in line or "L0 for L1 -0.0%" in line for line in said)


def test_shares_by_other_bounds() -> None:
    """Frequencies 0.4, 0.1 and ninety-eight of 0.001: L0 0.598, ten times the mean is 0.0598."""
    frequency = np.array([0.4, 0.1, *[0.001] * 98])
    known = pd.DataFrame({"arm": ["a"], "eval_set": ["held-out"], "frequency": [frequency]})
    (row,) = with_shares(known.drop(columns="frequency"), known).to_dict("records")
    assert row["l0_share_above_5pct"] == pytest.approx(0.5 / 0.598)
    assert row["l0_share_above_20pct"] == pytest.approx(0.4 / 0.598)
    assert row["l0_share_above_10_means"] == pytest.approx(0.5 / 0.598)


def test_the_verdict_needs_the_sign() -> None:
    down, up, none = Interval(-1, -2, -0.5, 5), Interval(1, 0.5, 2, 5), Interval(0, -1, 1, 5)
    assert verdict(down, none, -1) == "the activation"
    assert verdict(down, none, 1) == "neither"
    assert verdict(up, up, 1) == "both"
    assert verdict(none, up, 1) == "the penalty"


def test_a_run_of_bridges_alone_ends_well() -> None:
    """Their run has no cells, which others hold."""
    rows = synthetic(0.1, 0.1)
    bridges = rows[rows["architecture"] == "ReLU"].assign(architecture="Gated")
    assert "without all six cells" in factorial.answer(Results(bridges, NONE))
    rates = bridges[["arm", "eval_set"]].assign(frequency=[[0.5, 0.1]] * len(bridges))
    drawn = factorial.figures(Results(bridges, rates))
    assert "bridges_fvu_vs_l0" in drawn
    assert "effects" not in drawn


def test_a_line_looks_the_same_in_every_figure() -> None:
    beside = styled(["ReLU + L1", "JumpReLU + L0 (theta)", *BRIDGES])
    for some in (styled(CELLS), beside):
        assert len({look.color for look in some.values()}) == len(some)
    for name, architecture in (
        ("ReLU + L1", "ReLU"),
        ("JumpReLU + L0 (theta)", "JumpReLU"),
        ("TopK", "TopK"),
        ("Gated", "Gated"),
        ("Gated RI-L1", "GatedRIL1"),
    ):
        assert beside[name] == looks([architecture])[architecture]


def test_tuning_tables_list_trials() -> None:
    table = synthetic(0, 0, seeds=1)
    found = trials(prepared(table))
    assert set(found["cell"]) == set(CELLS)
    assert found["fvu"].to_numpy() == pytest.approx(np.exp(-0.5 * np.log(40)), rel=0.02)
    assert "fvu" in factorial.answer(Results(table, NONE))


def test_the_published_table_can_be_drawn_and_answered() -> None:
    results = Results.published("factorial", PUBLISHED)
    assert {"fvu_vs_l0", "effects"} <= set(factorial.figures(results))
    assert "JumpReLU for ReLU" in factorial.answer(results)


def test_controls_are_rows_like_the_others(
    folder: Path, finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_controls, "SWEEP", (4, 2))
    cache = tensor_cache(d_in=16)
    preset = STUDY.replace(data=STUDY.data.replace(lm_tokens=0))
    found = _controls.controls(Finished(preset, finished.table, folder, cache))
    assert Counter(found["cell"]) == {"rescaled": 12, "thresholded": 4, "thresholded, rescaled": 4}
    assert set(finished.table) - {"delta_lm_loss", "loss_recovered"} <= set(found)
    swept = found[found["cell"] == "thresholded"].groupby("setting")["l0"].mean()
    assert found["arm"].is_unique
    assert swept.max() < found["l0"].max()
    results = Results(finished.table, finished.frequencies, {"controls": found})
    assert factorial.figures(results)["controls"].axes
    tried = finished.table.assign(lr=np.linspace(1e-3, 2e-3, len(finished.table)))
    assert _controls.controls(Finished(preset, tried, folder, cache)).empty


def test_cells_and_bridges_are_parts() -> None:
    parts = STUDY.parts()
    cells, bridges = [f"cells-{n}" for n in range(5)], [f"bridges-{n}" for n in range(3)]
    assert list(parts) == cells + bridges
    assert {len(factorial.arms(part)) for name, part in parts.items() if name in cells} == {36}
    assert sum(len(factorial.arms(part)) for part in parts.values()) == 270
    assert list(factorial.PRESETS["pilot"].parts()) == ["cells-0", "cells-1"]


def labels(axes: Axes) -> dict[str, str]:
    """The lines, each with the L0 it ends at."""
    found = (str(line.get_label()).rpartition(" ") for line in axes.lines)
    return {name: ends for name, _, ends in found}


def test_histories_are_followed_near_two_l0s(folder: Path, finished: Results) -> None:
    part = Finished(STUDY, finished.table, folder, tensor_cache(d_in=16))
    found = convergence(part)
    assert set(found["near"]) == {32, 128}
    assert set(found["cell"]) == set(LINES)
    assert set(found["seed"]) == {0, 1}  # of the cells
    assert found.groupby(["near", "cell", "seed"])["arm"].nunique().eq(1).all()
    assert found.groupby(["near", "cell"])["tokens"].max().eq(512).all()
    results = Results(finished.table, finished.frequencies, {"convergence": found})
    drawn = factorial.figures(results)
    shown = labels(drawn["convergence"].axes[0])
    assert list(shown) == list(CELLS)
    near = found[(found["near"] == 32) & (found["tokens"] == 512)]
    ends = near.groupby("cell")["l0"].mean()
    assert shown == {name: f"{ends[name]:.0f}" for name in CELLS}
    for axes in drawn["bridges_convergence"].axes:
        assert set(BRIDGES) < set(labels(axes))


def test_contrasts_over_documents(
    folder: Path, finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents all alike leave no noise, and the mean is the contrast of the table."""
    rows = synthetic(-0.2, -0.1)
    cells = rows[rows["seed"] == 0].assign(seed=STUDY.seeds[-1])

    def alike(*_: object) -> dict[str, np.ndarray]:
        ones = np.ones(20)
        found = {"l0": cells["l0"], "error": cells["fvu"], "delta": cells["delta_lm_loss"]}
        sums = {name: np.outer(values, ones) for name, values in found.items()}
        return sums | dict.fromkeys(("tokens", "deviation", "scored"), ones)

    monkeypatch.setattr(_documents, "_sums", alike)
    monkeypatch.setattr(_documents, "REPLICATES", 3)
    monkeypatch.setattr(Finished, "sae", lambda *_: None)
    found = factorial.documents(Finished(STUDY, cells, folder, tensor_cache(d_in=16)))
    assert set(found["outcome"]) == {FVU.name, LOSS.name}
    penalty = found[found["contrast"] == "B"]
    for column in ("mean", "low", "high"):
        assert penalty[column].to_numpy() == pytest.approx(-0.2, abs=0.01)
    assert (found["high"] - found["low"]).abs().max() < 1e-9
    said = factorial.answer(Results(rows, NONE, {"documents": found}))
    assert "the SAEs of seed 4, 95% over 20 documents drawn anew" in said
    assert "FVU at matched L0, gradients to theta only*: JumpReLU for ReLU -9.6% [" in said


def test_sums_over_documents_are_those_of_the_table(folder: Path, finished: Results) -> None:
    preset = STUDY.replace(data=STUDY.data.replace(lm_tokens=0))
    part = Finished(preset, finished.table, folder, tensor_cache(d_in=16))
    rows = finished.table.iloc[:3]
    sums = _documents._sums(part, [part.sae(arm) for arm in rows["arm"]])
    found = _documents._measures(sums, np.ones(len(sums["tokens"]), dtype=np.int64))
    assert np.exp(found["log_l0"]) == pytest.approx(rows["l0"].to_numpy())
    assert np.exp(found["log_fvu"]) == pytest.approx(rows["fvu"].to_numpy(), rel=1e-5)


def test_what_is_tuned_is_what_the_published_trials_say() -> None:
    found = trials(prepared(pd.read_csv(PUBLISHED / "tables" / "tuning.csv")))
    assert found.groupby("cell").size().to_dict() == dict.fromkeys(LINES, 7)
    for name, rows in found.groupby("cell"):
        tuned = TUNED[str(name)][0]
        mine = rows[rows["lr"] == tuned.lr]
        if mine["activation"].str.contains("Log").all():  # there are thresholds
            mine = mine[mine["threshold_lr"] == tuned.threshold_lr]
            assert set(mine["activation"]) == {tuned.activation.label}
        assert mine["fvu"].max() <= (1 + CLOSE) * rows["fvu"].min()


def test_controls_are_held_against_their_own_seeds() -> None:
    """Planted: rescaled codes 10% below, the trained cell with L0 20% below; seed 9 is another."""
    shifts = {"ReLU + L1": 1.0, "ReLU + L0 (input)": 0.8}
    controls = {"rescaled": 0.9, "thresholded": 1.0, "thresholded, rescaled": 0.9}

    def rows(cells: dict[str, float], seeds: tuple[int, ...]) -> pd.DataFrame:
        known = [
            {"cell": name, "seed": seed, "l0": l0, "fvu": shift / l0 * (5.0 if seed == 9 else 1.0)}
            for name, shift in cells.items()
            for seed in seeds
            for l0 in (8.0, 30.0, 120.0)
        ]
        return pd.DataFrame(known).assign(eval_set="held-out")

    trained, derived = rows(shifts, (3, 4, 9)), rows(controls, (3, 4))
    found = from_trained(trained, derived)
    assert found.groupby("of")["mean"].mean().to_dict() == pytest.approx(
        {
            name: np.log(shift)
            for name, shift in {**controls, **shifts}.items()
            if name != "ReLU + L1"
        }
    )
    assert found["n"].eq(2).all()
    said = compared(trained, derived)
    assert "means over seeds 3, 4:" in said[0]
    assert said[1] == "  rescaled: L0 16 -10.0%, L0 32 -10.0%, L0 64 -10.0%, L0 112 -10.0%."
    assert said[2].startswith("  thresholded: L0 16 +0.0%")
    assert said[4].startswith("  ReLU + L0 (input): L0 16 -20.0%")


def test_paths_of_the_gradient_are_compared_under_each_penalty() -> None:
    """Planted: gradients to the input cost 0.1 under L0; the pair of L1 is not whole."""
    shifts = {"L0 (input)": 0.1, "L0 (theta)": 0.0, "L1 (theta)": 0.3}
    rows = [
        {"cell": f"JumpReLU + {name}", "seed": seed, "eval_set": "held-out"}
        | {"log_l0": np.log(l0), "log_fvu": shift - np.log(l0) + 0.2 * seed}
        for name, shift in shifts.items()
        for seed in range(3)
        for l0 in (8.0, 30.0, 70.0)
    ]
    (row,) = between_paths(pd.DataFrame(rows), (FVU,)).to_dict("records")
    assert (row["of"], row["to"]) == ("JumpReLU + L0 (input)", "JumpReLU + L0 (theta)")
    assert (row["places"], row["n"]) == (3, 3)
    assert [row[name] for name in ("low", "mean", "high")] == pytest.approx([0.1] * 3)
    said = paths(pd.DataFrame(rows), (FVU,))
    assert said == ["  under L0: FVU at matched L0 +10.5% [+10.5, +10.5]."]
