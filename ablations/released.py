"""Where do released SAEs lie in the figures of the JumpReLU paper (arXiv 2407.14435)?

Nothing is trained. `sae-bench run released --released FOLDER --model MODEL` measures every SAE in a
folder (in any known format, however deep) at the site that it names, a part a site, all of them out
of one pass of the model, and draws them in the axes of the paper with its curves dashed behind: 2,
10 and 11 (delta LM loss), 5 and 13 (frequent and dead latents), 12 (FVU), 14 (firing frequencies),
16 (r_L0). SAEs of one folder, architecture and width are one curve, in the colour of the
architecture. At other sites than the paper's kinds, a run has the standard comparison instead.

SAEs that do not name their site are measured at `--site`, or at the preset's; with SAEs that do
they mix only if all are of one. With `--site`, SAEs that name another one are refused. The figures
have three layers, and so has a run.

Curves can be laid over the paper's, in height too, only where model, site and text are its own:
Gemma 2 9B, layers 9, 20 and 31 of 42 (the preset's text is not). Elsewhere their order and shape
can be compared. How the SAEs were trained is not known here: a curve may mix budgets. All SAEs are
in memory at once.

Presets: `smollm2`, for SAEs of this suite, without the first eight positions of each context (some
have huge norms); `gemma-2-2b` and `gemma-2-9b` for Gemma Scope, in bfloat16 and contexts of 1,024
tokens as these were trained (the models are gated on the hub). All read technical English that
comes with Python's libraries; `--text` takes another text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ablations._attribution import attribution
from ablations._paper_figures import located
from ablations._paper_runs import figures_of_run
from sae_bench import plots
from sae_bench.ablation import Data, Preset
from sae_bench.arm import Arm
from sae_bench.contexts import Packed, Settled
from sae_bench.recipe import Recipe
from sae_bench.results import Results


@dataclass(frozen=True)
class Measured(Preset):
    """A preset that trains nothing: width and recipe are of no account.

    Args:
        data: only its held-out side is measured.
        sites: those of the SAEs; none: that of `data`.
    """

    d_sae: int = 1
    recipe: Recipe = Recipe(tokens=4096)
    sites: tuple[str, ...] = ()

    def parts(self) -> dict[str, Preset]:
        """One a site."""
        at = {site: self.data.replace(site=site) for site in self.sites}
        return {site: self.replace(data=data, sites=()) for site, data in at.items()} or {"": self}

    def measuring(self, sites: Sequence[str]) -> "Measured":
        """These sites.

        Raises:
            InputError: as `located`.
        """
        located(pd.Series(sites, dtype=str))
        return self.replace(sites=tuple(sites))


DATA = Data(tokens=16_384, held_out_tokens=65_536, lm_tokens=16_384)
GEMMA = DATA.replace(
    model="google/gemma-2-2b",
    site="layers.12.resid_post",
    context=Packed(1024),
    dtype="bfloat16",
    model_dtype="bfloat16",
)
PRESETS = {
    "smollm2": Measured(DATA.replace(context=Settled(DATA.context))),
    "gemma-2-2b": Measured(GEMMA),
    "gemma-2-9b": Measured(GEMMA.replace(model="google/gemma-2-9b", site="layers.20.resid_post")),
}


def arms(preset: Measured) -> list[Arm]:
    """None."""
    return []


FURTHER = {"attribution": attribution}
NAMES = {"l0": "L0", "fvu": "FVU", "delta_lm_loss": "delta LM loss"}
"""Columns that the answer tells of."""


def figures(results: Results) -> dict[str, Figure]:
    """Those of the paper that the SAEs have points in; at no site of its kinds, the standard
    comparison."""
    return figures_of_run(results) or plots.comparison(results.table, results.frequencies)


def answer(results: Results) -> str:
    """How many SAEs a curve has at each site, and their range."""
    said = ["Released SAEs, from the densest to the sparsest:"]
    rows = results.table.dropna(subset=["l0"]).sort_values("l0", ascending=False)
    for (site, series), curve in rows.groupby(["site", "series"]):
        ranges = [
            f"{name} {_ends(curve[column])}"
            for column, name in NAMES.items()
            if curve[column].notna().any()
        ]
        said.append(f"  {site}, {series} ({len(curve)}): {', '.join(ranges)}.")
    return "\n".join(said)


def _ends(values: "pd.Series[float]") -> str:
    shown = dict.fromkeys(f"{value:.3g}" for value in values.iloc[[0, -1]])
    return " to ".join(shown)
