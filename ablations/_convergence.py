"""Is the budget enough: FVU of training batches against tokens, at two L0s for each line."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._lines import prepared, styled
from sae_bench import bands, plots
from sae_bench.ablation import Finished

AT = (32, 128)
"""Values of L0: of each line and seed, the arm that ends nearest (by ratio) is followed."""
COLUMNS = ["arm", "cell", "seed", "near", "tokens", "l0", "fvu"]


def convergence(finished: Finished) -> pd.DataFrame:
    """Histories of the arms near the two L0s of the first seed: columns arm, cell, seed, near (the
    L0 asked for), tokens, l0 and fvu of the batch of a logged step."""
    table = prepared(finished.table)
    table = table[table["seed"] == table["seed"].min()]
    found = []
    for near in AT:
        miss = (table["log_l0"] - np.log(near)).abs()
        for row in table.loc[miss.groupby(table["cell"]).idxmin()].to_dict("records"):
            history = finished.history(row["arm"])
            known = {"arm": row["arm"], "cell": row["cell"], "seed": row["seed"], "near": near}
            found.append(history.assign(**known)[COLUMNS])
    return pd.concat(found, ignore_index=True)


def converging(found: pd.DataFrame, lines: list[str]) -> Figure:
    """FVU against tokens, a panel an L0, a curve a line.

    Args:
        found: what `convergence` gives, of which each line's first seed is drawn.
        lines: to draw.
    """
    found = found[found["seed"] == found.groupby("cell")["seed"].transform("min")]
    figure = plots.figure(6.8, 2.6, 1, 2)
    for near, axes in zip(AT, figure.axes, strict=True):
        for line, look in styled(lines).items():
            rows = found[(found["near"] == near) & (found["cell"] == line)]
            axes.plot(rows["tokens"], rows["fvu"], color=look.color, linewidth=1, label=line)
        axes.set(xlabel="training tokens", ylabel="FVU of the batch", yscale="log")
        axes.set_title(f"arms that end near L0 {near}", fontsize=8)
        bands.logarithmic(axes)
        axes.grid(alpha=0.25, linewidth=0.5)
    figure.axes[0].legend(fontsize=6, frameon=False)
    return figure
