"""Controls on the trained SAEs of the factorial's cell ReLU + L1, without training: is its distance
to the other cells shrinkage of codes, or the selection of latents?

    rescaled                codes rescaled by least squares, selection as it was
    thresholded             the densest SAE of each seed with a threshold at inference that is
                            swept to lower L0s: selection changed, shrinkage as it was
    thresholded, rescaled   both

Fitted on training rows, measured on the held-out side. After `sae-bench run factorial`:

    python -m ablations._controls results/runs/factorial

writes `controls.csv`, rows of the same columns as the run's table, and `figures/controls.png` into
the folder of the run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from ablations import factorial
from sae_bench import bands, plots
from sae_bench.ablation import Results
from sae_bench.cache import ActivationCache
from sae_bench.evaluate import evaluate
from sae_bench.files import write_table
from sae_bench.loading import load_sae
from sae_bench.posthoc import rescaled, thresholded
from sae_bench.sae import SparseAutoencoder

SOURCE = "ReLU + L1"
SWEEP = (128, 64, 32, 16)
"""Values of L0 that the threshold is swept to."""
ROWS = 32_768
"""Training rows on which factors and thresholds are fitted."""
CONTROLS = ("rescaled", "thresholded", "thresholded, rescaled")


def derived(
    sae: SparseAutoencoder, x: torch.Tensor, is_densest: bool
) -> Iterator[tuple[str, str, SparseAutoencoder]]:
    """The controls made of one trained SAE: name, setting, SAE."""
    yield CONTROLS[0], "rescaled", rescaled(sae, x)
    if is_densest:
        for l0 in SWEEP:
            swept = thresholded(sae, x, l0)
            yield CONTROLS[1], f"thresholded-{l0}", swept
            yield CONTROLS[2], f"thresholded-rescaled-{l0}", rescaled(swept, x)


def controls(folder: Path, cache: ActivationCache, lm_tokens: int) -> pd.DataFrame:
    """The table of the controls of a finished run.

    Args:
        folder: of the run.
        cache: what it was trained on.
        lm_tokens: as in the run.
    """
    assert cache.held_out is not None
    table = factorial.prepared(Results.read(folder).table)
    cells = table[table["cell"] == SOURCE]
    x = torch.cat(list(cache.chunks(2048)))[:ROWS]
    densest = set(cells.loc[cells.groupby("seed")["l0"].idxmax(), "arm"])
    known, saes = [], []
    for row in cells.to_dict("records"):
        sae = load_sae(folder / "arms" / row["arm"] / "sae")
        for name, setting, changed in derived(sae, x, row["arm"] in densest):
            changes = {"arm": f"{row['arm']}-{setting}", "cell": name, "status": "derived"}
            known.append({**row, **changes, "setting": f"{row['setting']}-{setting}"})
            saes.append(changed)
    measured = evaluate(saes, cache.held_out, lm_tokens=lm_tokens)
    given = pd.DataFrame(known).drop(columns=[c for c in measured if c in known[0]])
    return given.join(measured.set_index("sae").drop(columns="frequency"))


def drawn(table: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """FVU against L0 of the controls, ReLU + L1 and JumpReLU + L0."""
    figure = plots.figure(4.6, 2.8)
    (axes,) = figure.axes
    lines = (SOURCE, *CONTROLS[:1], "JumpReLU + L0 (theta)", *CONTROLS[1:])
    both = pd.concat([factorial.prepared(table), found])
    bands.bands(both, axes, x="l0", y="fvu", by="cell", lines=lines)
    bands.logarithmic(axes)
    bands.label_ends(axes)
    return figure


def main(folder: Path) -> None:
    """Makes the table and the figure."""
    preset = factorial.PRESETS["study"]
    found = controls(folder, preset.data.cache(), preset.data.lm_tokens)
    write_table(folder / "controls.csv", found)
    plots.save(drawn(Results.read(folder).table, found), folder / "figures", "controls")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
