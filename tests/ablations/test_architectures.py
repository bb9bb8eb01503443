"""All architectures against each other: matched L0, equal compute, latents that match."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablations import _comparison, _compute, _documents, _matching, architectures
from ablations._places import levels
from sae_bench.ablation import Finished
from sae_bench.contrasts import compare
from sae_bench.results import Results
from sae_bench.run import run
from tests.grids import tensor_cache

STUDY = architectures.PRESETS["study"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two seeds and two budgets, a few steps long."""
    recipe = STUDY.recipe.replace(
        tokens=256, batch_size=64, lr_warmup=1, lr_decay=1, penalty_warmup=1
    )
    small = STUDY.replace(
        d_sae=130, recipe=recipe, seeds=(0, 1), budgets=(0.5, 1.0), topk=(60, 20, 5)
    )
    small = small.replace(batchtopk=(60, 20, 5))
    out, cache = tmp_path_factory.mktemp("run"), tensor_cache(d_in=16)
    table = run(architectures.arms(small), cache, out=out, device="cpu")
    return Finished(small, table, out, cache)


def test_seven_architectures_with_equal_settings() -> None:
    arms = architectures.arms(STUDY)
    assert set(Counter(arm.name for arm in arms).values()) == {30}
    assert len({arm.key for arm in arms}) == len(arms) == 210
    assert not any(arm.objection for arm in arms)
    assert all(arm.ends_warm for arm in arms)


@pytest.fixture(scope="module")
def results(finished: Finished) -> Results:
    """With all further tables but those of a language model."""
    known = {"matches": _matching.matches(finished)}
    known["products"] = architectures.dense_products(finished)
    return Results(finished.table, Results.read(finished.folder).frequencies, known)


def test_from_end_to_end(results: Results, tmp_path: Path) -> None:
    assert set(results.table["status"]) == {"trained"}
    drawn = architectures.figures(results)
    assert {"fvu_vs_l0", "frequency_histograms", "matches"} <= set(drawn)
    for figure in drawn.values():
        figure.savefig(tmp_path / "drawn.png")
    said = architectures.answer(results)
    assert "Architectures against ReLU + L1, 2 paired seeds" in said
    assert "arms nearest to L0 32: " in said
    assert "ReLU (L0 " in said


def test_products_are_those_of_the_issue(results: Results) -> None:
    rows = results.table.merge(results.further["products"], on="arm")
    found = rows.groupby("architecture")["products"].first()
    assert found.pop("Gated") == pytest.approx(7, abs=0.3)
    assert found.pop("GatedRIL1") == pytest.approx(8, abs=0.3)
    assert found.drop("Matryoshka").to_numpy() == pytest.approx(5, abs=0.3)


def test_noise_of_documents_is_of_the_full_budget(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all documents the differences are those of the table; a loss needs a language model. After
    a few steps only lines with a k share a range of L0, so others are held against TopK."""
    monkeypatch.setattr(_documents, "REPLICATES", 5)
    monkeypatch.setattr(_comparison, "COMPARED_TO", "TopK")
    anywhere = replace(_comparison.FVU, at=())
    monkeypatch.setattr(architectures, "FVU", anywhere)
    preset = finished.preset.replace(data=STUDY.data.replace(lm_tokens=0))
    found = architectures.documents(replace(finished, preset=preset))
    assert set(found["outcome"]) == {"FVU"}
    full = _comparison.full_budget(_comparison.prepared(finished.table))
    first = full[full["seed"] == 0]
    expected = compare(first, _comparison.squares(full), (anywhere,), "cell")
    keys = ["way", "contrast"]
    both = found.merge(expected, on=keys, suffixes=("", "_expected"))
    assert set(both["way"]) == set(finished.table["architecture"]) - {"TopK"}
    assert (both["places"] > 0).any()
    assert both["mean"].to_numpy() == pytest.approx(
        both["mean_expected"].to_numpy(), rel=1e-4, abs=1e-6, nan_ok=True
    )
    assert _comparison._of_documents(found)[1].startswith("    FVU: ")


# -- latents that match ---------------------------------------------------------------------------


def test_matches_are_pairs_of_other_seeds(results: Results) -> None:
    found = results.further["matches"]
    pairs = found[found["to_arm"].notna()]
    assert (pairs["seed"] != pairs["to_seed"]).all()
    assert set(found["at"]) == set(_matching.AT)
    assert (found["above_0.7"] >= found["mutual_0.7"]).all()
    names = results.table["architecture"].unique()
    others = {_matching.EVERY, _matching.TOKENS, _matching.RANDOM}
    assert set(_matching.shares(found, 32).columns) == {*names, *others}
    every = found[found["to_architecture"] == _matching.EVERY].set_index(["at", "arm"])
    least = pairs.groupby(["at", "arm"])["mutual_0.7"].min()
    assert (every["mutual_0.7"].reindex(least.index) <= least).all()


def test_most_and_fewest_matches_between_architectures() -> None:
    """Those within an architecture, and columns that are none, are not among them."""
    same = pd.DataFrame(
        {"A": [0.99, 0.3], "B": [0.5, 0.01], "chance": [1.0, 0.0]}, index=["A", "B"]
    )
    assert _comparison._across(same) == (
        "between architectures 50% of A's in B down to 30% of B's in A."
    )
    assert "alone" in _comparison._across(same.loc[["A"], ["A", "chance"]])


def test_best_matches() -> None:
    a = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[0.0, 3.0], [5.0, 0.0]])
    found = _matching.best_matches(a, b)
    assert found.cosine.tolist() == pytest.approx([1.0, 2**-0.5])
    assert found.mutual.tolist() == [True, True]
    found = _matching.best_matches(a, -a)
    assert found.cosine.tolist() == pytest.approx([-(2**-0.5)] * 2)


def test_of_near_copies_one_is_found_in_turn() -> None:
    copies = torch.tensor([1.0, 0.0, 0.0]) + 0.01 * torch.eye(3)
    found = _matching.best_matches(copies, torch.eye(3)[:1])
    assert (found.cosine > 0.99).all()
    assert found.mutual.tolist() == [True, False, False]
    p = np.array([0.5, 0.25, 0.25])
    shares = _matching._shares(found, p)
    assert shares["above_0.7"] == 1
    assert shares["mutual_0.7"] == pytest.approx(1 / 3)
    assert shares["by_firings"] == pytest.approx(0.5)


# -- equal compute --------------------------------------------------------------------------------


def planted(costs: dict[str, float], seeds: tuple[int, ...] = (0, 1, 2)) -> pd.DataFrame:
    """FVU falls as tokens^-0.5 and l0^-0.3; B costs more for the same FVU, dense settings more than
    sparse ones; the L0 of a setting differs from seed to seed."""
    rows = [
        {"architecture": name, "seed": seed, "eval_set": "held-out", "train_tokens": tokens}
        | {"arm": f"{name}-{seed}-{tokens}-{l0}", "setting": f"{name}-{l0}"}
        | {"seconds": cost * tokens * l0**0.1, "l0": l0 + seed, "log_l0": np.log(l0 + seed)}
        | {"log_fvu": -0.5 * np.log(tokens) - 0.3 * np.log(l0 + seed) + 0.001 * seed}
        for name, cost in costs.items()
        for seed in seeds
        for tokens in (100, 200, 400, 800)
        for l0 in (10, 30, 100)
    ]
    return pd.DataFrame(rows)


def test_equal_compute_is_the_most_that_both_have_spent() -> None:
    table = planted({"ReLU": 1.0, "B": 2.0})
    products = table[["arm"]].assign(products=table["architecture"].map({"ReLU": 5.0, "B": 5.0}))
    spent = _compute.at_compute(table, products)
    fvu, ratio = _compute.at_equal(spent, "seconds", "B", "ReLU")
    assert ratio == pytest.approx(2)
    assert fvu.mean == pytest.approx(0.5 * np.log(2))
    assert _compute.at_equal(spent, "products", "B", "ReLU").fvu.mean == pytest.approx(0)
    assert _compute.sentences(spent, "ReLU")[0].startswith("    seconds: B (costs x2.00) +41.4%")
    (seconds, _) = _compute.against_compute(spent).axes
    assert [line.get_label() for line in seconds.lines] == ["B", "ReLU"]
    alone = _compute.at_compute(table, pd.DataFrame())
    assert len(_compute.sentences(alone, "ReLU")) == 1


def test_what_a_longer_budget_gains() -> None:
    """From 100 to 800 tokens FVU falls to 8^-0.5."""
    said = _compute.gained(_compute.at_compute(planted({"ReLU": 1.0}), pd.DataFrame()))
    assert said == "FVU from 100 to 800 tokens: ReLU -64.6%"


def test_levels_are_means_over_seeds_where_all_reach() -> None:
    table = planted({"ReLU": 1.0}).query("train_tokens == 800")
    table = table.assign(l0_share_above_10pct=0.1 + 0.01 * table["seed"])
    table = table[(table["seed"] > 0) | (table["l0"] < 50)]
    said = levels(table, _comparison.SHARE.y, "architecture")
    assert said == "at L0 16, 32, 64: ReLU 11%, -, -"


def test_a_pause_of_one_arm_changes_nothing() -> None:
    table = planted({"ReLU": 1.0, "B": 2.0})
    before = _compute.at_compute(table, pd.DataFrame())
    table.loc[table.index[5], "seconds"] += 1e4
    assert _compute.at_compute(table, pd.DataFrame()).equals(before)


def test_what_is_never_at_equal_compute_is_said_as_such() -> None:
    spent = _compute.at_compute(planted({"ReLU": 1.0, "B": 20.0}), pd.DataFrame())
    assert "B (costs x20.00) at no common compute" in _compute.sentences(spent, "ReLU")[0]


def test_places_are_those_of_all_budgets() -> None:
    table = planted({"ReLU": 1.0, "B": 2.0})
    assert _compute.common_places(table) == [16, 32, 64]
    short = (table["train_tokens"] == 100) & (table["l0"] == 100)
    assert _compute.common_places(table[~short]) == [16]


# -- what is said ---------------------------------------------------------------------------------


def test_a_crossing_is_told_place_by_place() -> None:
    table = planted({"ReLU": 1.0, "TopK": 1.0}).query("train_tokens == 800")
    gain = 0.1 * np.log(table["l0"] / 30) * (table["architecture"] == "TopK")
    said = _comparison._against(table.assign(log_fvu=table["log_fvu"] - gain), _comparison.FVU)
    (line,) = said
    assert line.startswith("    TopK: L0 16 +6.")
    assert "L0 64 -7." in line


def test_squares_are_against_relu(finished: Finished) -> None:
    table = _comparison.prepared(finished.table)
    found = _comparison.squares(table)
    assert set(found) == set(table["architecture"]) - {"ReLU"}
    values = pd.DataFrame({0.0: [1.0, 3.0]}, index=pd.Index(["ReLU + L1", "TopK"], name="cell"))
    values = pd.concat({0: values}, names=["seed"]).swaplevel()
    assert found["TopK"].contrasts(values)["A"].to_numpy().tolist() == [[2.0]]


def test_one_seed_has_no_verdict(finished: Finished, tmp_path: Path) -> None:
    table = finished.table[finished.table["seed"] == 0]
    said = architectures.answer(Results(table, pd.DataFrame()))
    assert "no verdict" in said
    assert "[" not in said  # intervals
