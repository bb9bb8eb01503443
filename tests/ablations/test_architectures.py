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
    rows = architectures.contrasts(results)
    assert rows["train_tokens"].dropna().nunique() == 2
    assert set(rows.loc[rows["outcome"] == _comparison.MATCHING, "near"]) == set(_matching.AT)


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


def pairs_of(shares: dict[tuple[str, str], tuple[float, ...]]) -> pd.DataFrame:
    """What `matches` gives, near L0 32: a row an ordered pair of arms."""
    rows = [
        {"at": 32, "architecture": of, "to_architecture": to, "l0": 30.0, "mutual_0.7": share}
        for (of, to), each in shares.items()
        for share in each
    ]
    return pd.DataFrame(rows)


def test_common_latents_are_told_from_their_rows() -> None:
    """Those within an architecture, and columns that are none, are not among those between."""
    shares = {("A", "A"): (0.4, 0.6), ("A", "B"): (0.3, 0.4), ("B", "A"): (0.1, 0.2)}
    shares |= {("B", "B"): (0.99,)}
    for name in ("A", "B"):
        others = (_matching.EVERY, _matching.TOKENS, _matching.RANDOM)
        shares |= {(name, other): (0.01,) for other in others}
    found = _matching.common(pairs_of(shares))
    own = found[(found["of"] == "A") & (found["to"] == "A")].squeeze()
    assert own[["near", "l0", "least", "mean", "most", "pairs"]].tolist() == pytest.approx(
        [32, 30, 0.4, 0.5, 0.6, 2]
    )
    _, first, second, third = _comparison._of_latents(found)
    assert (
        first
        == "    arms nearest to L0 32: A (L0 30) 50% (40% to 60%), B (L0 30) 99% (99% to 99%)."
    )
    assert second.strip() == "between architectures 35% of A's in B down to 15% of B's in A."
    assert "near that L0 1.0% (A) to 1.0% (A); among centred" in third
    assert "alone" in _comparison._across(found[found["of"] == "A"])


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
    found = _compute.at_equal(spent, "ReLU")
    assert found[["of", "to", "n"]].drop_duplicates().to_numpy().tolist() == [["B", "ReLU", 3]]
    by = found.set_index("compute")
    assert by["costs"].to_dict() == pytest.approx({"seconds": 2, "products": 1})
    assert by["mean"].to_dict() == pytest.approx({"seconds": 0.5 * np.log(2), "products": 0})
    assert _compute.sentences(found)[0].startswith("    seconds: B (costs x2.00) +41.4%")
    (seconds, _) = _compute.against_compute(spent).axes
    assert [line.get_label() for line in seconds.lines] == ["B", "ReLU"]
    alone = _compute.at_compute(table, pd.DataFrame())
    assert set(_compute.at_equal(alone, "ReLU")["compute"]) == {"seconds"}


def test_what_a_longer_budget_gains() -> None:
    """From 100 to 800 tokens FVU falls to 8^-0.5; the largest fall comes first."""
    table = planted({"ReLU": 1.0, "B": 1.0})
    more = 0.1 * (table["architecture"] == "B") * (table["train_tokens"] == 800)
    spent = _compute.at_compute(table.assign(log_fvu=table["log_fvu"] + more), pd.DataFrame())
    found = _compute.longer(spent)
    assert found[["of", "train_tokens", "to_tokens", "n"]].to_numpy().tolist() == [
        ["ReLU", 800, 100, 3],
        ["B", 800, 100, 3],
    ]
    assert found["mean"].tolist() == pytest.approx([-0.5 * np.log(8), 0.1 - 0.5 * np.log(8)])
    assert _compute.gained(found) == "FVU from 100 to 800 tokens: ReLU -64.6%, B -60.9%"


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
    found = _compute.at_equal(spent, "ReLU")
    assert found["mean"].isna().all()
    assert "B (costs x20.00) at no common compute" in _compute.sentences(found)[0]


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
    rows = architectures.contrasts(Results(table, pd.DataFrame()))
    assert rows["n"].eq(1).all()
    assert len(rows) == said.count("L0 ")
    assert "[" not in said  # intervals
