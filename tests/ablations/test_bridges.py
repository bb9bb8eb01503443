"""Bridges are told by their distance from cells, place by place."""

import re

import numpy as np
import pandas as pd
import pytest

from ablations._bridges import BESIDE, beside_cells, from_cells
from ablations._outcomes import FREQUENT, FVU

SEEDS = {"ReLU + L1": 5, "JumpReLU + L0 (theta)": 5, "Gated": 3}
LEVEL = {"ReLU + L1": 0.0, "JumpReLU + L0 (theta)": -0.2, "Gated": -0.1}


def planted(upto: float = 250.0) -> pd.DataFrame:
    """log FVU = -log L0 + that of the line + that of the seed; Gated gains 0.02 at and above 50."""
    rows = []
    for name, seeds in SEEDS.items():
        for seed in range(seeds):
            for l0 in (8.0, 16.0, 32.0, 64.0, 128.0, upto):
                gain = 0.02 * (l0 > 50) * (name == "Gated")
                fvu = LEVEL[name] - np.log(l0) + 0.3 * seed - gain
                rows.append((name, seed, np.log(l0), fvu, 0.1 * (name == "Gated")))
    columns = ["cell", "seed", "log_l0", "log_fvu", "l0_share_above_10pct"]
    return pd.DataFrame(rows, columns=columns).assign(eval_set="held-out")


def test_planted_distances_are_said_place_by_place() -> None:
    said = beside_cells(planted(), ["Gated", "TopK"], (FVU, FREQUENT[0]))
    title, places, gated, *others = said[0].splitlines()
    assert title == f"FVU at matched L0, over {BESIDE[0]}:"
    assert re.split(r" {2,}", places.strip()) == ["L0 16", "L0 32", "L0 64", "L0 128", "mean"]
    early, late, mean = (f"{x}% [{x}, {x}]" for x in (-9.5, -11.3, -10.4))
    assert re.split(r" {2,}", gated.strip()) == ["Gated", early, early, late, late, mean]
    assert not others
    assert said[1].splitlines()[2].split()[:2] == ["Gated", "+10.5%"]
    assert "+10.00 [+10.00, +10.00] points" in said[2]
    assert len(said) == 4
    found = from_cells(planted(), ["Gated", "TopK"], (FVU, FREQUENT[0]))
    assert set(found["of"]) == {"Gated"}
    assert found["n"].eq(3).all()
    here = found[(found["outcome"] == FVU.name) & (found["to"] == BESIDE[0])]
    assert here["mean"].tolist() == pytest.approx([-0.1, -0.1, -0.12, -0.12, -0.11])
    assert here["l0"].tolist() == pytest.approx([16, 32, 64, 128, np.nan], nan_ok=True)


def test_places_are_those_that_both_reach() -> None:
    table = planted()
    table = table[(table["cell"] != "Gated") | (table["log_l0"] < np.log(100))]
    assert "L0 128" not in beside_cells(table, ["Gated"], (FVU,))[0]
    assert beside_cells(table[table["cell"] != "Gated"], ["Gated"], (FVU,)) == []
    apart = table.assign(log_l0=table["log_l0"] + 10 * (table["cell"] == "Gated"))
    assert beside_cells(apart, ["Gated"], (FVU,)) == []
