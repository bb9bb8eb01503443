"""FVU and L0 by position: where in a context does the training context matter?

Positions are counted from after the BOS, from 1, in bins [1, 2), [2, 4), [4, 8), ... The FVU of a
bin is the squared error of its tokens over their squared deviation from the mean of all tokens of
the evaluation set.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from sae_bench import bands, plots
from sae_bench.ablation import Finished
from sae_bench.contrasts import matched, t_interval
from sae_bench.reconstruction import Moments

CHUNK = 2048
FIRST = 8
"""Position from which on FVU is drawn."""


def by_bin(
    position: Int[np.ndarray, " tokens"], *values: Float[np.ndarray, " tokens"]
) -> tuple[Int[np.ndarray, " bins"], list[Float[np.ndarray, " bins"]]]:
    """The first position of every bin that has tokens, and each array's sums over the bins.

    Args:
        position: from 1.
        values: one number a token.
    """
    exponent = np.frexp(position)[1] - 1
    present, index = np.unique(exponent, return_inverse=True)
    return 2**present, [np.bincount(index, weights=each) for each in values]


@torch.no_grad()
def positions(finished: Finished) -> pd.DataFrame:
    """Columns arm, eval_set, position (the first of a bin), tokens, l0 and fvu, on the last
    evaluation set."""
    name, cache = list(finished.evaluation.items())[-1]
    has_no_bos = cache.record()["model"]["bos_kind"] == "none"
    position = cache.columns().position + has_no_bos
    moments = Moments.of(cache, CHUNK)
    chunks = list(cache.chunks(CHUNK))
    rows = []
    for arm in finished.table.loc[finished.table["l0"].notna(), "arm"].unique():
        sae = finished.sae(arm)
        on, error = [], []
        for x in chunks:
            f = sae.encode(x)
            on.append((f > 0).sum(1).double().numpy())
            error.append((x - sae.decode(f)).double().square().sum(1).numpy())
        parts = (np.ones(len(position)), np.concatenate(on), np.concatenate(error))
        first, (tokens, l0, squares, apart) = by_bin(position, *parts, moments.deviation)
        known = {"arm": arm, "eval_set": name, "position": first, "tokens": tokens.astype(int)}
        rows.append(pd.DataFrame(known | {"l0": l0 / tokens, "fvu": squares / apart}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def at_l0(found: pd.DataFrame, table: pd.DataFrame, y: str, l0: float) -> pd.DataFrame:
    """y of every bin where an arm's mean L0 over all positions is `l0`, interpolated between arms
    of one line, training context and seed: one row a (line, position, seed), one column a training
    context.

    Args:
        found: what `positions` gives, of all parts.
        table: of the run, with part, line, seed and log_l0.
        y: column of `found`, interpolated in its logarithm.
        l0: inside the range of a seed's arms, else NaN.
    """
    known = table[["arm", "eval_set", "part", "line", "seed", "log_l0"]]
    rows = found.drop(columns="part", errors="ignore").merge(known, on=["arm", "eval_set"])
    rows = rows.assign(log_y=np.log(rows[y].where(rows[y] > 0)))
    values = {
        key: matched(part, "log_l0", "log_y", [float(np.log(l0))], "part")[float(np.log(l0))]
        for key, part in rows.groupby(["line", "position"], sort=False)
    }
    return np.exp(pd.concat(values, names=["line", "position"]).unstack("part"))


def apart_by_position(fvu: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Log FVU of every training context minus that of the reference in every bin, mean over lines,
    paired over seeds: columns position (the first of the bin), contrast (the training context),
    mean, low, high, n.

    Args:
        fvu: what `at_l0` gives.
        reference: a training context.
    """
    logs = np.log(fvu)
    apart = logs.drop(columns=reference).sub(logs[reference], axis=0)
    rows = [
        {"position": int(position), "contrast": name} | vars(t_interval(values.to_numpy(float)))
        for position, seeds in apart.groupby(["position", "seed"]).mean().groupby("position")
        for name, values in seeds.items()
    ]
    return pd.DataFrame(rows)


def by_position(
    found: pd.DataFrame, table: pd.DataFrame, lines: list[str], parts: list[str], l0: float
) -> Figure:
    """FVU by position against that of the second training context, from position 8 on (few tokens
    lie before), a panel a line; a curve a training context, mean over seeds in a band that spans
    them. Arguments as in `at_l0`."""
    figure = plots.figure(4.6, 2.6, 1, len(lines))
    fvu = at_l0(found, table, "fvu", l0)
    apart = 100 * (fvu.div(fvu[parts[1]], axis=0) - 1)
    for line, axes in zip(lines, figure.axes, strict=True):
        rows = apart.loc[line]
        _curves(rows[rows.index.get_level_values("position") >= FIRST], axes, parts)
        axes.set_title(f"{line}, L0 {l0:g}", fontsize=8)
    figure.axes[0].set_ylabel(f"FVU against training on {parts[1]} (%)")
    figure.axes[0].legend(title="trained on", fontsize=6, title_fontsize=6, frameon=False)
    return figure


def _curves(values: pd.DataFrame, axes: Axes, parts: list[str]) -> None:
    for index, part in enumerate(parts):
        by = values[part].groupby("position")
        places, colour = by.mean().index, bands.COLOURS[index]
        axes.plot(
            places, by.mean(), bands.MARKERS[index] + "-", color=colour, markersize=3, label=part
        )
        axes.fill_between(places, by.min(), by.max(), color=colour, alpha=0.2, linewidth=0)
    first = values.index.get_level_values("position")
    axes.set_xlim(0.8 * first.min(), 1.25 * first.max())  # also where there is no curve
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("position after the BOS")
    axes.grid(alpha=0.25, linewidth=0.5)
