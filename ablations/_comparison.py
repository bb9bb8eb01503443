"""What a grid of architectures says: at matched L0, at equal compute, and of common latents."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._lines import prepared
from ablations._matching import shares
from sae_bench import bands, plots
from sae_bench.contrasts import common_range, interpolate, matched, t_interval

PLACES = (16, 32, 64)
"""Values of L0 at which architectures are compared."""
COMPARED_TO = "ReLU"


def _at(table: pd.DataFrame, y: str) -> tuple[pd.DataFrame, list[int]]:
    """Mean of y over those places that all curves reach, for each architecture and seed."""
    lines = list(table["architecture"].unique())
    low, high = common_range(table, "log_l0", y, "architecture", lines)
    places = [place for place in PLACES if low <= np.log(place) <= high]
    values = matched(table, "log_l0", y, [float(np.log(p)) for p in places], "architecture")
    return values.mean(axis=1).unstack("architecture"), places


def at_compute(table: pd.DataFrame) -> pd.DataFrame:
    """log FVU at the places for each architecture, seed and budget, beside log seconds: the mean
    over its arms of the time in their own steps. Columns architecture, seed, log_seconds, log_fvu.

    Args:
        table: what `prepared` gives.
    """
    rows = []
    for budget, part in table.groupby("train_tokens"):
        seconds = np.log(part.groupby(["architecture", "seed"])["seconds"].mean())
        fvu, _ = _at(part, "log_fvu")
        for (architecture, seed), time in seconds.items():
            rows.append((architecture, seed, budget, time, fvu.loc[seed, architecture]))
    columns = ["architecture", "seed", "train_tokens", "log_seconds", "log_fvu"]
    return pd.DataFrame(rows, columns=columns)


def _at_equal_seconds(spent: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """log FVU of each architecture and seed at the most seconds that all have spent."""
    most = spent.groupby(["architecture", "seed"])["log_seconds"].max().min()
    found = {
        key: interpolate(
            part["log_seconds"].to_numpy(), part["log_fvu"].to_numpy(), np.array([most])
        )[0]
        for key, part in spent.groupby(["architecture", "seed"])
    }
    index = pd.MultiIndex.from_tuples(list(found), names=["architecture", "seed"])
    return pd.Series(list(found.values()), index).unstack("architecture"), float(np.exp(most))


def _differences(values: pd.DataFrame) -> str:
    apart = values.drop(columns=COMPARED_TO).sub(values[COMPARED_TO], axis=0)
    order = apart.mean().sort_values().index
    return ", ".join(f"{name} {t_interval(apart[name].to_numpy()).percent()}" for name in order)


OUTCOMES = (("log_fvu", "FVU"), ("log_delta_lm_loss", "delta LM loss"))


def verdict(table: pd.DataFrame, found: pd.DataFrame) -> str:
    """Architectures against ReLU + L1, best first: paired over seeds with 95% t-intervals; of one
    seed differences alone, and no verdict.

    Args:
        table: of the run.
        found: what `matches` gives; may be empty.
    """
    table = prepared(table)
    full = table[table["train_tokens"] == table["train_tokens"].max()]
    if table["seed"].nunique() < 2:
        return _of_one_seed(full)
    said = [f"Architectures against {COMPARED_TO} + L1, means over places, paired over seeds:"]
    for y, name in OUTCOMES:
        values, places = _at(full, y)
        if places:
            shown = ", ".join(map(str, places))
            said.append(f"  {name} at L0 {shown}, equal tokens: {_differences(values)}.")
    if table["train_tokens"].nunique() > 1:
        values, seconds = _at_equal_seconds(at_compute(table))
        said.append(f"  FVU at {seconds:.0f} s of training each: {_differences(values)}.")
    if not found.empty:
        same = shares(found)
        own = ", ".join(f"{name} {same.loc[name, name]:.0%}" for name in same.index)
        said.append(
            "  Latents with a decoder direction of cosine above 0.7 in another seed of the same "
            f"architecture: {own}; among random directions {same['random'].max():.0%}."
        )
    return "\n".join(said)


def _of_one_seed(table: pd.DataFrame) -> str:
    said = [f"Architectures against {COMPARED_TO} + L1, one seed: no intervals, so no verdict."]
    for y, name in OUTCOMES:
        values, places = _at(table, y)
        if places and COMPARED_TO in values:
            apart = (values.iloc[0] - values[COMPARED_TO].iloc[0]).drop(COMPARED_TO)
            shown = ", ".join(f"{key} {x:+.0%}" for key, x in np.expm1(apart.sort_values()).items())
            said.append(f"  {name}, mean over L0 {', '.join(map(str, places))}: {shown}.")
    return "\n".join(said)


def against_compute(spent: pd.DataFrame) -> Figure:
    """FVU at the places against seconds of an arm's own steps, a curve an architecture.

    Args:
        spent: what `at_compute` gives.
    """
    drawn = plots.figure(4.6, 2.8)
    (axes,) = drawn.axes
    means = spent.groupby(["architecture", "train_tokens"], sort=False)[
        ["log_seconds", "log_fvu"]
    ].mean()
    for name, look in plots.looks(means.index.unique("architecture")).items():
        x, y = np.exp(means.loc[name].to_numpy().T)
        axes.plot(x, y, **look._asdict(), markersize=3, label=name)
    axes.set(xscale="log", xlabel="seconds of training of an arm", ylabel="FVU at L0 16, 32, 64")
    bands.logarithmic(axes)
    bands.label_ends(axes)
    return drawn


def matching(found: pd.DataFrame) -> Figure:
    """Share of latents of the row's architecture that the column's has, at another seed."""
    same = shares(found)
    drawn = plots.figure(4.6, 3.4)
    (axes,) = drawn.axes
    axes.imshow(same.to_numpy(), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(same.columns)), list(same.columns), rotation=40, ha="right")
    axes.set_yticks(range(len(same.index)), list(same.index))
    for (row, column), share in np.ndenumerate(same.to_numpy()):
        colour = "white" if share < 0.5 else "black"
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=6)
    axes.set(xlabel="... found by", ylabel="latents of ...")
    return drawn
