"""Is the budget enough: FVU of training batches against tokens, at two L0s for each line."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._lines import prepared, styled
from sae_bench import bands, plots
from sae_bench.ablation import Finished

AT = (32, 128)
"""Values of L0: of each line and seed, the arm that ends nearest (by ratio) is followed."""
CONVERGENCE = (
    f"FVU of training batches of the arms that end nearest to L0 {AT[0]} and {AT[1]}; beside each "
    "name the L0 they end at, which differs, so that the order of curves means little. Curves are "
    "means over three seeds (cells: 0, 3, 4; bridges: 0, 1, 2), bands, mostly narrower than the "
    "lines, span them; all see the same batches. The first steps are partly above the axes. L0 "
    "changes along a curve."
)
"""Caption."""
SHOWN = 1 / 20
"""Share of the tokens after which no curve leaves the axes, not those of lines left out either."""
COLUMNS = ["arm", "cell", "seed", "near", "tokens", "l0", "fvu"]


def convergence(finished: Finished) -> pd.DataFrame:
    """Histories of the arms near the two L0s, of every line and seed: columns arm, cell, seed, near
    (the L0 asked for), tokens, l0 and fvu of the batch of a logged step."""
    table = prepared(finished.table)
    found = []
    for near in AT:
        miss = (table["log_l0"] - np.log(near)).abs()
        nearest = miss.groupby([table["cell"], table["seed"]]).idxmin()
        for row in table.loc[nearest].to_dict("records"):
            history = finished.history(row["arm"])
            known = {"arm": row["arm"], "cell": row["cell"], "seed": row["seed"], "near": near}
            found.append(history.assign(**known)[COLUMNS])
    return pd.concat(found, ignore_index=True)


def converging(found: pd.DataFrame, lines: Iterable[str]) -> Figure:
    """FVU against tokens, a panel an L0, a curve a line: its mean over seeds in a band that spans
    them, at steps that all of its seeds have logged.

    Args:
        found: what `convergence` gives.
        lines: to draw, those that are there.
    """
    figure = plots.figure(6.8, 3.2, 1, len(AT))
    for near, axes in zip(AT, figure.axes, strict=True):
        rows = found[found["near"] == near]
        for line, look in styled(lines).items():
            part = rows[rows["cell"] == line]
            if len(part):
                fvu = part.pivot(index="tokens", columns="seed", values="fvu").dropna()
                ends = part.loc[part["tokens"] == fvu.index[-1], "l0"].mean()
                label = f"{line} {ends:.0f}"
                bands.band(axes, fvu.index.to_numpy() / 1000, fvu.to_numpy().T, look, label, 0.8)
        axes.set(xlabel="training tokens (thousands)", ylabel="FVU of the batch")
        axes.set_title(f"arms that end near L0 {near}", fontsize=8)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.set_yscale("log")
        plots.plain_numbers(axes.yaxis, (1, 1.5, 2, 3, 5, 7))
        late = rows.loc[rows["tokens"] >= SHOWN * rows["tokens"].max(), "fvu"]
        axes.set_ylim(late.min() / 1.02, late.max() * 1.02)
        bands.label_ends(axes)
    figure.axes[1].set_ylabel("")
    return figure
