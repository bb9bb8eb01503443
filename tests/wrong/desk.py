"""The folder in which wrong input is given: a language model, a text, a finished run, SAEs, and
some wrong things."""

import shutil
from pathlib import Path

import pandas as pd

from architectures import JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.activations import TopK
from sae_bench.cli import main
from sae_bench.files import read_record, write_record
from tests.desk import furnish

SITE = "layers.1.resid_post"
RUN = "run letters.py --device cpu"


def prepare(desk: Path) -> None:
    """A model, a text, an ablation and a finished run of it, SAEs, and some wrong things."""
    furnish(desk)
    (desk / "folder").mkdir()
    (desk / "folder" / "x").write_text("precious")
    saes = {
        "relu": ReLUSAE(32, 8),
        "narrow": ReLUSAE(8, 16),
        "jump": JumpReLUSAE(32, 8),
        "topk": TopKSAE(32, 8, activation=TopK(2)),
    }
    for name, sae in saes.items():
        sae.save(desk / name)
    assert main([*RUN.split(), "--out", "done"]) == 0
    found = read_record(desk / "done" / "grid.json")
    for name, wrong in {"version": {"version": 99}, "wrong-types": {"arms": [1, 2]}}.items():
        shutil.copytree("done", name)
        for file in ("grid.json", "grid.copy.json"):
            write_record(desk / name / file, found | wrong)
    shutil.copytree("done", "no-columns")
    pd.DataFrame({"x": [1]}).to_parquet("no-columns/table.parquet")


def kept() -> Path:
    return next(Path("kept/activations").iterdir())
