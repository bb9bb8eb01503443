"""Ablations in parts, what they measure besides, and what is published of them."""

from pathlib import Path

import pandas as pd
import pytest

from sae_bench import ablation
from sae_bench.errors import InputError
from sae_bench.results import Results
from sae_bench.store import MEASURED
from sae_bench.study import chosen_arms, chosen_parts, study
from tests.desk import ABLATION, TWO_SITES, furnish

PARTED = (
    ABLATION
    + TWO_SITES
    + """

class Evaluated(TwoSites):
    def evaluation(self):
        return {
            str(length): self.data.replace(context=Packed(length)) for length in (8, 24)
        }


def decoders(finished):
    trained = finished.table[finished.table["status"] == "trained"].drop_duplicates("arm")
    norms = [finished.sae(arm).W_dec.detach().norm().item() for arm in trained["arm"]]
    sets = ", ".join(f"{name}: {cache.rows}" for name, cache in finished.evaluation.items())
    return pd.DataFrame({"arm": trained["arm"], "norm": norms, "sets": sets})


FURTHER = {"decoders": decoders}
PRESETS = {"sites": Evaluated(DATA, 16, RECIPE)}
"""
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = furnish(tmp_path_factory.mktemp("desk"))
    (folder / "letters.py").write_text(PARTED)
    return folder


def ran(desk: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> Results:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(desk / "cache"))
    chosen = ablation.load("letters.py")
    return study(chosen, chosen_parts(chosen.preset(None), names), desk / "run", device="cpu")


def test_parts_evaluation_sets_and_further_tables(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ran(desk, monkeypatch, ["1"])
    assert set(one.table["part"]) == {"1"}
    first = desk / "run" / "1" / "further" / "decoders.parquet"
    made = first.stat().st_mtime_ns
    both = ran(desk, monkeypatch, [])
    assert first.stat().st_mtime_ns == made  # measured once
    measured = both.table[both.table["status"] == "trained"]
    assert set(measured["eval_set"]) == {"8", "24"}
    assert measured.groupby("part")["site"].unique().str[0].to_dict() == {
        "0": "layers.0.resid_post",
        "1": "layers.1.resid_post",
    }
    assert measured.groupby(["part", "arm"]).size().eq(2).all()
    assert both.table["activation_scale"].nunique() == 1  # that of layer 0, for both parts
    assert set(both.further) == {"decoders"}
    tokens = measured.groupby("eval_set")["tokens"].first()
    sets = f"8: {int(tokens['8'])}, 24: {int(tokens['24'])}"
    assert set(both.further["decoders"]["sets"]) == {sets}
    assert set(both.further["decoders"]["arm"]) == set(measured["arm"])
    assert set(both.frequencies["arm"]) == set(measured["arm"])
    assert measured["arm"].str.startswith(("0/", "1/")).all()
    read = Results.read(desk / "run")
    pd.testing.assert_frame_equal(read.table, both.table)


def test_what_is_published_of_other_parts_stays(
    desk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both = ran(desk, monkeypatch, [])

    def only(part: str) -> Results:
        return Results.read(desk / "run" / part).named(part)

    only("0").publish("letters", tmp_path)
    only("1").publish("letters", tmp_path)
    only("0").publish("letters", tmp_path)
    found = Results.published("letters", tmp_path)
    shown = ["part", "arm", "eval_set", "series", "fvu"]
    pd.testing.assert_frame_equal(found.table[shown], both.table[shown])
    assert list(found.frequencies["arm"]) == list(both.frequencies["arm"])
    pd.testing.assert_frame_equal(found.further["decoders"], both.further["decoders"])


def test_a_further_table_of_nothing_is_not_published(tmp_path: Path) -> None:
    row = {"arm": "a", "series": "s", "setting": "x", "status": "trained"}
    table = pd.DataFrame([row | dict.fromkeys(MEASURED, 1.0)])
    known = pd.DataFrame({"arm": ["a"], "eval_set": ["held-out"], "frequency": [[0.5]]})
    Results(table, known, {"nothing": pd.DataFrame()}).publish("some", tmp_path)
    assert Results.published("some", tmp_path).further == {}


def test_a_part_that_is_not_there(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown part 'x'; it has '0', '1'"):
        ran(desk, monkeypatch, ["x"])


def test_arms_are_chosen_by_their_keys_among_all_parts() -> None:
    factorial = ablation.load("factorial")
    parts = {
        name: factorial.arms(part) for name, part in factorial.presets["study"].parts().items()
    }
    two = {name: parts[name] for name in ("cells-0", "cells-1")}
    keys = [arms[index].key for arms in two.values() for index in (3, 0)]
    found = chosen_arms(two, keys)
    assert {name: [arm.key for arm in arms] for name, arms in found.items()} == {
        "cells-0": [keys[1], keys[0]],
        "cells-1": [keys[3], keys[2]],
    }
    assert chosen_arms(two) == two
    with pytest.raises(InputError, match="unknown arm 'relu-0'"):
        chosen_arms(two, ["relu-0"])
    with pytest.raises(InputError, match="part 'cells-1' has none of these arms; leave it out"):
        chosen_arms(two, keys[:2])
