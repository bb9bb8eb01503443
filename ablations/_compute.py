"""FVU at equal compute, told twice: in seconds and in matrix products.

Seconds are those of an arm's own steps beside the others in lockstep. A pause of the machine falls
on whichever arm is stepping, and seeds cost the same, so the median over seeds is taken. Products
are those of dense steps (`cost.products`), whatever the machine and the implementation.
"""

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


def at_equal(spent: pd.DataFrame, to: str) -> pd.DataFrame:
    """Each architecture minus `to`, log FVU at the most compute that both have spent, paired over
    seeds: columns compute (a key of `COSTS` that is known), of, to, costs (what the one costs at
    equal tokens, over the other), mean, low, high, n. No interval where one of them is never at the
    compute of the other.

    Args:
        spent: what `at_compute` gives.
        to: an architecture.
    """
    rows = [
        {"compute": cost, "of": name, "to": to} | _at_equal(spent, f"log_{cost}", name, to)
        for cost in COSTS
        if spent[f"log_{cost}"].notna().any()
        for name in spent["architecture"].unique()
        if name != to
    ]
    return pd.DataFrame(rows)


def _at_equal(spent: pd.DataFrame, x: str, of: str, to: str) -> dict[str, float]:
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
    found = t_interval(apart if whole else apart[:0])
    return {"costs": float(np.exp(means[of] - means[to]))} | vars(found)


def sentences(found: pd.DataFrame) -> list[str]:
    """Each architecture against the one by each measure of compute.

    Args:
        found: what `at_equal` gives.
    """
    said = []
    for cost, rows in found.groupby("compute", sort=False) if len(found) else ():
        shown = ", ".join(
            f"{r.of} (costs x{r.costs:.2f}) "
            + (Interval.of(r).percent() if np.isfinite(r.mean) else "at no common compute")
            for r in rows.itertuples()
        )
        said.append(f"    {cost}: {shown}.")
    return said


def longer(spent: pd.DataFrame) -> pd.DataFrame:
    """Log FVU of each architecture at the largest budget minus its own at the smallest, paired over
    seeds, from the largest fall: columns of, to (the same), train_tokens, to_tokens, mean, low,
    high, n.

    Args:
        spent: what `at_compute` gives.
    """
    by = spent.pivot(index=["architecture", "seed"], columns="train_tokens", values="log_fvu")
    most, least = by.columns.max(), by.columns.min()
    rows = [
        {"of": name, "to": name, "train_tokens": most, "to_tokens": least}
        | vars(t_interval(falls.to_numpy(float)))
        for name, falls in (by[most] - by[least]).groupby("architecture")
    ]
    return pd.DataFrame(rows).sort_values("mean", ignore_index=True)


def gained(found: pd.DataFrame) -> str:
    """By how much FVU falls from the smallest budget to the largest.

    Args:
        found: what `longer` gives.
    """
    least, most = (found[column].iloc[0] for column in ("to_tokens", "train_tokens"))
    shown = ", ".join(f"{r.of} {np.expm1(r.mean):+.1%}" for r in found.itertuples())
    return f"FVU from {least:,.0f} to {most:,.0f} tokens: {shown}"


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
