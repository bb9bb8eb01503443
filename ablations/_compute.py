"""FVU at equal compute, told twice: in seconds and in matrix products.

Seconds are those of an arm's own steps beside the others in lockstep. A pause of the machine falls
on whichever arm is stepping, and seeds cost the same, so the median over seeds is taken. Products
are those of dense steps (`cost.products`), whatever the machine and the implementation.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sae_bench import bands, plots
from sae_bench.contrasts import Interval, common_range, interpolate, matched, t_interval

PLACES = (16, 32, 64)
"""Values of L0 at which architectures are compared."""
COSTS = {"seconds": "seconds of training of an arm", "products": "matrix products x million tokens"}


def common_places(table: pd.DataFrame) -> list[int]:
    """Those of `PLACES` that all architectures reach with all seeds and budgets."""
    ranges = [
        common_range(part, "log_l0", "log_fvu", "architecture", list(part["architecture"].unique()))
        for _, part in table.groupby("train_tokens")
    ]
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    return [l0 for l0 in PLACES if low <= np.log(l0) <= high]


def at_compute(table: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Means over `common_places` for each architecture, seed and budget: columns architecture,
    seed, train_tokens, log_fvu; log_seconds and log_products (times 1e6 tokens; NaN if not known),
    the same for all seeds, whose L0 at a setting differ a little.

    Args:
        table: what `prepared` gives.
        products: columns arm and products; may be empty.
    """
    known = {} if products.empty else products.set_index("arm")["products"]
    alike = ["architecture", "setting", "train_tokens"]
    table = table.assign(
        log_seconds=np.log(table.groupby(alike)["seconds"].transform("median")),
        log_products=np.log(table["arm"].map(known).astype(float) * table["train_tokens"] / 1e6),
    )
    places = [float(np.log(l0)) for l0 in common_places(table)]
    found = []
    for budget, part in table.groupby("train_tokens"):
        columns = {
            y: matched(part, "log_l0", y, places, "architecture").mean(axis=1, skipna=False)
            for y in ("log_fvu", *(f"log_{cost}" for cost in COSTS))
        }
        found.append(pd.DataFrame(columns).reset_index().assign(train_tokens=budget))
    spent = pd.concat(found, ignore_index=True)
    logs = [f"log_{cost}" for cost in COSTS]
    of_seeds = spent.groupby(["architecture", "train_tokens"])[logs]
    return spent.assign(**dict(of_seeds.transform("mean").items()))


class Equal(NamedTuple):
    """One architecture beside another.

    Attributes:
        fvu: log FVU of the one minus the other at the most compute that both have spent.
        ratio: what the one costs at equal tokens, over the other.
    """

    fvu: Interval
    ratio: float


def at_equal(spent: pd.DataFrame, cost: str, of: str, to: str) -> Equal:
    """Without an interval where one of them is never at the compute of the other.

    Args:
        spent: what `at_compute` gives.
        cost: a key of `COSTS`.
        of, to: architectures.
    """
    x = f"log_{cost}"
    parts = {name: spent[spent["architecture"] == name] for name in (of, to)}
    most = min(part[x].max() for part in parts.values())
    values = {
        name: pd.Series(
            {
                seed: interpolate(rows[x].to_numpy(), rows["log_fvu"].to_numpy(), np.array([most]))[
                    0
                ]
                for seed, rows in part.groupby("seed")
            }
        )
        for name, part in parts.items()
    }
    last = spent["train_tokens"].max()
    means = {n: part.loc[part["train_tokens"] == last, x].mean() for n, part in parts.items()}
    apart = (values[of] - values[to]).to_numpy(float)
    whole = np.isfinite(apart).all()
    return Equal(t_interval(apart if whole else apart[:0]), float(np.exp(means[of] - means[to])))


def sentences(spent: pd.DataFrame, to: str) -> list[str]:
    """Each architecture against `to` by both measures of compute.

    Args:
        spent: what `at_compute` gives.
        to: an architecture.
    """
    said = []
    for cost in COSTS:
        if spent[f"log_{cost}"].isna().all():
            continue
        found = {
            name: at_equal(spent, cost, name, to)
            for name in spent["architecture"].unique()
            if name != to
        }
        shown = ", ".join(
            f"{name} (costs x{each.ratio:.2f}) "
            + (each.fvu.percent() if np.isfinite(each.fvu.mean) else "at no common compute")
            for name, each in found.items()
        )
        said.append(f"    {cost}: {shown}.")
    return said


def gained(spent: pd.DataFrame) -> str:
    """By how much FVU falls from the smallest budget to the largest, means over seeds.

    Args:
        spent: what `at_compute` gives.
    """
    by = spent.groupby(["architecture", "train_tokens"])["log_fvu"].mean().unstack("train_tokens")
    falls = np.expm1(by[by.columns.max()] - by[by.columns.min()]).sort_values()
    shown = ", ".join(f"{name} {fall:+.1%}" for name, fall in falls.items())
    return f"FVU from {by.columns.min():,.0f} to {by.columns.max():,.0f} tokens: {shown}"


def against_compute(spent: pd.DataFrame) -> Figure:
    """FVU at the places against both measures of compute, means over seeds, a curve each.

    Args:
        spent: what `at_compute` gives.
    """
    costs = [cost for cost in COSTS if spent[f"log_{cost}"].notna().any()]
    drawn = plots.figure(1 + 2.9 * len(costs), 2.8, 1, len(costs))
    names = list(dict.fromkeys(spent["architecture"]))
    for cost, axes in zip(costs, drawn.axes, strict=True):
        by = spent.groupby(["architecture", "train_tokens"])
        means = by[[f"log_{cost}", "log_fvu"]].mean()
        for name, look in plots.looks(names).items():
            x, y = np.exp(means.loc[name].to_numpy().T)
            axes.plot(x, y, **look._asdict(), markersize=3, label=name)
        axes.set(xscale="log", xlabel=COSTS[cost])
        plots.plain_numbers(axes.xaxis)
        bands.logarithmic(axes)
    drawn.axes[0].set_ylabel("FVU at L0 16 to 64")
    bands.label_ends(drawn.axes[-1])
    return drawn
