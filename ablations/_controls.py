"""Controls on the trained SAEs of the factorial's cell ReLU + L1, without training: is its distance
to the other cells shrinkage of codes, or the selection of latents?

    rescaled                codes rescaled by least squares, selection as it was
    thresholded             the densest SAE of each seed with a threshold at inference that is
                            swept to lower L0s: selection changed, shrinkage as it was
    thresholded, rescaled   both

Fitted on training rows, measured on the held-out side.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ablations._lines import prepared
from sae_bench import bands, plots
from sae_bench.ablation import Finished
from sae_bench.contrasts import matched, t_interval
from sae_bench.evaluate import evaluate
from sae_bench.posthoc import rescaled, thresholded
from sae_bench.sae import SparseAutoencoder

SOURCE = "ReLU + L1"
SWEEP = (128, 64, 32, 16)
"""Values of L0 that the threshold is swept to."""
ROWS = 32_768
"""Training rows on which factors and thresholds are fitted."""
CONTROLS = ("rescaled", "thresholded", "thresholded, rescaled")
BESIDE = "ReLU + L0 (input)"
"""The cell that changes the selection in training."""
PLACES = (16, 32, 64, 112)
"""Values of L0 at which they are compared; the densest SAE's threshold reaches 120."""


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


def controls(finished: Finished) -> pd.DataFrame:
    """Rows of the controls, in the columns of the run's table; none where there is no ReLU + L1, or
    where learning rates are tried."""
    cache, table = finished.cache, prepared(finished.table)
    assert cache.held_out is not None
    cells = table[table["cell"] == SOURCE]
    if cells.empty or cells["lr"].nunique() > 1:
        return pd.DataFrame()
    x = torch.cat(list(cache.chunks(2048)))[:ROWS]
    densest = set(cells.loc[cells.groupby("seed")["l0"].idxmax(), "arm"])
    known, saes = [], []
    for row in cells.to_dict("records"):
        for name, setting, changed in derived(finished.sae(row["arm"]), x, row["arm"] in densest):
            changes = {"arm": f"{row['arm']}-{setting}", "cell": name, "status": "derived"}
            known.append({**row, **changes, "setting": f"{row['setting']}-{setting}"})
            saes.append(changed)
    measured = evaluate(saes, cache.held_out, lm_tokens=finished.preset.data.lm_tokens)
    given = pd.DataFrame(known).drop(columns=[c for c in measured if c in known[0]])
    return given.join(measured.set_index("sae").drop(columns="frequency"))


def from_trained(table: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Log FVU of each control, and of the cell that it stands beside (of), minus that of the
    trained `SOURCE` (to) at each of `PLACES` that any seed reaches, of the seeds of the controls:
    columns of, to, l0, mean, low, high, n.

    Args:
        table: what `prepared` gives.
        found: what `controls` gives.
    """
    rows = pd.concat([table[table["cell"].isin((SOURCE, BESIDE))], found])
    rows = rows[rows["seed"].isin(found["seed"])].assign(eval_set="one")
    rows = rows.assign(log_l0=np.log(rows["l0"]), log_fvu=np.log(rows["fvu"]))
    values = matched(rows, "log_l0", "log_fvu", list(np.log(PLACES)), "cell")
    known = []
    for name in (*CONTROLS, BESIDE):
        apart = (values.loc[name] - values.loc[SOURCE]).to_numpy(float)
        for place, logs in zip(PLACES, apart.T, strict=True):
            row = {"of": name, "to": SOURCE, "l0": float(place)}
            known.append(row | vars(t_interval(logs)))
    return pd.DataFrame(known).dropna(subset="mean")


def compared(table: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """`from_trained` in words, means over seeds, a line each. Arguments as there."""
    seeds = sorted({int(seed) for seed in found["seed"]})
    said = [
        f"Without training for it: {SOURCE} with other codes or thresholds, FVU against the "
        f"trained one at matched L0, means over seeds {', '.join(map(str, seeds))}:"
    ]
    for name, rows in from_trained(table, found).groupby("of", sort=False):
        shown = ", ".join(f"L0 {r.l0:g} {np.expm1(r.mean):+.1%}" for r in rows.itertuples())
        said.append(f"  {name}: {shown}.")
    return said


def controlled(table: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """FVU against L0 of the controls, ReLU + L1 and JumpReLU + L0.

    Args:
        table: what `prepared` gives.
        found: what `controls` gives.
    """
    figure = plots.figure(4.6, 2.8)
    (axes,) = figure.axes
    lines = (SOURCE, *CONTROLS[:1], "JumpReLU + L0 (theta)", *CONTROLS[1:])
    bands.bands(
        pd.concat([table, found]), axes, x="l0", y="fvu", by="cell", lines=bands.ordered(lines)
    )
    bands.logarithmic(axes)
    bands.label_ends(axes)
    return figure
