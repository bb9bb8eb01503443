"""A user's folder: a language model, a text and an ablation of their own. All small."""

import json
from pathlib import Path

from tests.corpus import Letters
from tests.tiny import tiny_model

ABLATION = '''"""Is ReLU or TopK better on letters?

A second paragraph.
"""

from architectures import ReLUSAE, TopKSAE
from sae_bench import plots
from sae_bench.ablation import Data, Preset
from sae_bench.activations import TopK
from sae_bench.arm import grid
from sae_bench.contexts import Packed
from sae_bench.penalties import L0, L1
from sae_bench.recipe import Recipe

DATA = Data(
    model="model",
    site="layers.1.resid_post",
    text="text.jsonl",
    tokens=1000,
    held_out_tokens=200,
    context=Packed(24),
    lm_tokens=100,
)
RECIPE = Recipe(tokens=512, batch_size=64, lr=3e-3, lr_warmup=2, penalty_warmup=2)
PRESETS = {
    "small": Preset(DATA, 16, RECIPE),
    "greedy": Preset(DATA, 16, RECIPE.replace(tokens=1 << 17, batch_size=1 << 17)),
}


def arms(preset):
    common = {"d_sae": preset.d_sae, "recipe": preset.recipe}
    return [
        *grid(ReLUSAE, penalty=[L1(0.01), L1(0.1)], **common),
        *grid(TopKSAE, activation=[TopK(3), TopK(6)], **common),
        *grid(TopKSAE, activation=TopK(3), penalty=L0(1.0), **common),
    ]


def figures(results):
    return plots.comparison(results.table, results.frequencies)


def answer(results):
    return f"the best FVU is {results.table['fvu'].min():.3f}"
'''

TWO_SITES = """
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class TwoSites(Preset):
    def parts(self):
        sites = ("layers.0.resid_post", "layers.1.resid_post")
        return {site[7]: self.replace(data=self.data.replace(site=site)) for site in sites}

    def scaled_by(self):
        return self.data.replace(site="layers.0.resid_post")
"""
"""Added to an ablation: a preset of two parts, trained in the units of the first."""


def furnish(folder: Path) -> Path:
    """Writes model/, text.jsonl and letters.py into `folder`."""
    lm = tiny_model("llama")
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    lines = [json.dumps({"text": document.text}) for document in Letters().read()]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "letters.py").write_text(ABLATION)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, locks aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
