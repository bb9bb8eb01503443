"""Part (ii) of `kde_state`: what state does to training.

Every line has the same number of thresholds' learning rates: at the base rate a frontier of several
coefficients, at the others one arm of the middle coefficient. With F(l) the line's log FVU at
log L0 = l at the base rate (one seed), the gain of another rate is its arm's log FVU - F(its own
log L0): at equal L0. The rate of a seed is the one with the least mean gain over the *other* seeds,
so that no seed chooses for itself, and the frontier is moved by that rate's gain.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._estimators import LINES, PULL_NAMES, STATES, line, look
from ablations._lines import prepared
from ablations._relative import relative_fvu
from ablations._threshold_measures import MOVED
from ablations._threshold_noise import loglog, text
from sae_bench import bands, plots
from sae_bench.contrasts import Interval, Outcome, Square, compare, interpolate, intervals

PLACES = (16, 24, 32, 48, 64, 96)
FVU = Outcome("log_fvu", "log_l0", "FVU at matched L0", tuple(float(x) for x in np.log(PLACES)))
SHARE = Outcome("l0_share_above_10pct", "log_l0", "share of L0 above 10%", FVU.at)
DEAD = Outcome("dead", "log_l0", "dead latents", FVU.at)
TARGET = 64
"""L0 that steps are counted to."""

SQUARES = {
    state: Square("batch", state, "batch, exact jump", f"{state}, exact jump")
    for state in STATES
    if state != "batch"
}
"""For each state a 2x2: A is the state instead of none, B exact jumps."""


# -- the grid of a line ---------------------------------------------------------------------------


def middle(values: Sequence[float]) -> float:
    """The value in the middle."""
    return values[len(values) // 2]


def cells(coefficients: Sequence[float], rates: Sequence[float]) -> list[tuple[float, float]]:
    """Coefficient and rate of each arm: all coefficients at the base rate, which is the middle one,
    and the middle coefficient at all rates."""
    at, base = middle(coefficients), middle(rates)
    return [(c, base) for c in coefficients if c != at] + [(at, rate) for rate in rates]


# -- the table of the run -------------------------------------------------------------------------


def trained(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that were measured, with their lines and logarithms."""
    known = prepared(table)
    return known.assign(line=line(known["kernel"]))


def base_rate(table: pd.DataFrame) -> float:
    """The base rate: that of the most coefficients."""
    return float(table.groupby("threshold_lr")["coefficient"].nunique().idxmax())


def middle_coefficient(table: pd.DataFrame) -> float:
    """The middle coefficient: that of the most rates."""
    return float(table.groupby("coefficient")["threshold_lr"].nunique().idxmax())


def replicates(table: pd.DataFrame) -> pd.DataFrame:
    """One run for each seed: without the arms that differ in their data order alone."""
    return table[table["data_seed"] == table.groupby("seed")["data_seed"].transform("min")]


def frontier(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the base rate.

    Args:
        table: what `trained` gives.
    """
    rows = replicates(table)
    return rows[np.isclose(rows["threshold_lr"], base_rate(table))]


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """log FVU at equal L0 of each rate against the base rate: one row a (line, seed), one column a
    rate; 0 at the base rate, NaN where the arm lies outside the frontier's range.

    Args:
        table: what `trained` gives.
    """
    rate, rows = base_rate(table), replicates(table)
    found = []
    for (name, seed), part in rows.groupby(["line", "seed"]):
        base = np.isclose(part["threshold_lr"], rate)
        others = part[~base]
        x, y = (part.loc[base, column].to_numpy(float) for column in ("log_l0", "log_fvu"))
        gain = others["log_fvu"] - interpolate(x, y, others["log_l0"].to_numpy(float))
        values = dict(zip(others["threshold_lr"], gain, strict=True))
        found.append({"line": name, "seed": seed, rate: 0.0, **values})
    return pd.DataFrame(found).set_index(["line", "seed"]).sort_index(axis=1)


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """The rate of each line and seed, chosen by the other seeds: columns line, seed, rate, gain.
    One seed alone keeps the base rate.

    Args:
        table: what `trained` gives.
    """
    every, base, found = gains(table), base_rate(table), []
    for (name, seed), own in every.iterrows():
        others = every.loc[name].drop(index=seed).mean()
        candidates = others[own.notna()].dropna()
        rate = float(candidates.idxmin()) if len(candidates) else base
        found.append({"line": name, "seed": seed, "rate": rate, "gain": float(own[rate])})
    return pd.DataFrame(found)


def tuned(table: pd.DataFrame) -> pd.DataFrame:
    """The frontier, moved to the chosen rates.

    Args:
        table: what `trained` gives.
    """
    rows = frontier(table).merge(chosen(table), on=["line", "seed"])
    return rows.assign(log_fvu=rows["log_fvu"] + rows["gain"])


WAYS = {"at one threshold lr": frontier, "each at its own threshold lr": tuned}


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Every contrast of every square, both ways: see `contrasts.compare`; its column way is here
    state, and way is how rates were dealt with.

    Args:
        table: what `trained` gives.
    """
    held = set(table["line"])
    squares = {state: each for state, each in SQUARES.items() if held.issuperset(each.cells)}
    found = [
        compare(rows_of(table), squares, (FVU,), "line")
        .rename(columns={"way": "state"})
        .assign(way=way)
        for way, rows_of in WAYS.items()
        if squares
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


# -- words ----------------------------------------------------------------------------------------


def word(effect: Interval, floor: float = 0.0) -> str:
    """What an interval of an effect on log FVU decides.

    Args:
        floor: size up to which an effect is none: if all of the interval is within it, there is no
            difference, and a mean within it decides nothing.
    """
    if not math.isfinite(effect.half_width):
        return "unmeasured"
    if -floor < effect.low and effect.high < floor:
        return "equal"
    if not effect.excludes_zero or abs(effect.mean) < floor:
        return "undecided"
    return "better" if effect.mean < 0 else "worse"


def decided(calls: Mapping[str, Interval], floor: float = 0.0) -> str:
    """Effects on log FVU by what their intervals decide, in a sentence without its end.

    Args:
        calls: by the names of what has the effect; at least one.
        floor: see `word`.
    """
    words = {
        "better": "FVU at matched L0 is lower with",
        "worse": "FVU at matched L0 is higher with",
        "equal": f"FVU at matched L0 differs by less than {floor:.1%} (all of the interval) with",
        "undecided": "the data do not decide for",
        "unmeasured": "there is no interval (no common range of L0, or a single seed) for",
    }
    parts = [
        f"{said} " + ", ".join(name for name, each in calls.items() if word(each, floor) == call)
        for call, said in words.items()
        if call in {word(each, floor) for each in calls.values()}
    ]
    return "; ".join(parts)


def described(table: pd.DataFrame, further: Mapping[str, pd.DataFrame]) -> str:
    """Effects on FVU at matched L0, then what the thresholds did.

    Args:
        table: what `trained` gives.
        further: tables `thresholds` and `spread`, if they were made.
    """
    found = effects(table)
    said = [
        f"Training, {table['seed'].nunique()} paired seeds (weights and data order). FVU at "
        "matched L0 against the batch estimate, 95% t-intervals over seeds (below 0: better); "
        f"places are those of L0 {', '.join(map(str, PLACES))} that all seeds of a 2x2 reach. "
        "Other rates than the base have one arm a seed: its gain is taken for all places."
    ]
    if found.empty:
        return "\n".join([*said, "  the lines that are compared are not all there: no answer."])
    for way, rows in found.groupby("way", sort=False):
        said += [f"  {way}:", *(_sentence(*each) for each in rows.groupby("state", sort=False))]
    said.append(rates_chosen(table, LINES))
    if "thresholds" in further:
        said.append(_behaviour(table, further))
    return "\n".join([*said, concluded(found)])


def _sentence(state: object, rows: pd.DataFrame) -> str:
    of, places = intervals(rows), int(rows["places"].iloc[0])
    if not places:
        return f"    {state}: no common range of L0, so no answer."
    return (
        f"    {state}, {places} places: {of['A'].percent()} ({word(of['A'])}), mean of "
        f"straight-through {of['A without B'].percent()} and exact jump "
        f"{of['A with B'].percent()}. Exact jumps: {of['B without A'].percent()} without the "
        f"state, {of['B with A'].percent()} with it."
    )


def concluded(found: pd.DataFrame) -> str:
    """Which states help training, in a sentence.

    Args:
        found: what `effects` gives.
    """
    own = found[found["way"] == list(WAYS)[1]]
    both = own[own["contrast"] == "A"]
    calls = {r.state: Interval.of(r) for r in both.itertuples()}
    ends = own.loc[own["contrast"].isin(("A", "A without B", "A with B")), ["low", "high"]]
    return (
        f"  So, each at its own rate and in the mean of both coefficients: {decided(calls)}. "
        f"Gains beyond {-np.expm1(ends.min(axis=None)):.1%} and losses beyond "
        f"{np.expm1(ends.max(axis=None)):.1%} are outside all of these intervals, of each "
        "coefficient and of the mean; other budgets, widths, models and Adam's beta1 are outside "
        "the study."
    )


def rates_chosen(table: pd.DataFrame, lines: Iterable[str]) -> str:
    """The rates of the thresholds that were chosen, and whether they lie at an end of the range.

    Args:
        table: what `trained` gives.
        lines: in this order, those that are there.
    """
    picked = chosen(table).groupby("line")["rate"].agg(lambda rates: sorted(set(rates)))
    known = [name for name in lines if name in picked.index]
    shown = [f"{name} {' or '.join(f'{r:g}' for r in picked[name])}" for name in known]
    said = "  Threshold lr chosen, by the other seeds: " + "; ".join(shown) + "."
    tried = table["threshold_lr"]
    for end, rate, further in (
        ("lowest", tried.min(), "lower"),
        ("highest", tried.max(), "higher"),
    ):
        at_end = [name for name in known if np.isclose(picked[name], rate).all()]
        if at_end and tried.nunique() > 1:
            names = "All" if len(at_end) == len(known) else ", ".join(at_end)
            said += f" {names} chose the {end} that was tried; {further} ones may be better still."
    every = gains(table)
    if outside := [f"{rate:g}" for rate in every if every[rate].isna().all()]:
        said += f" No arm at {', '.join(outside)} has an L0 inside its line's range."
    return said


def diverged(table: pd.DataFrame) -> str:
    """Which arms diverged, by line and rate.

    Args:
        table: of the run, failed arms included, with the names of their lines.
    """
    rows = table.assign(failed=table["status"] == "failed")
    counts = rows.groupby(["line", "threshold_lr"], sort=False)["failed"].agg(["sum", "size"])
    shown = [
        f"{name} {failed} of {size} arms at threshold lr {rate:g}"
        for (name, rate), failed, size in counts.itertuples()
        if failed
    ]
    return f"  Diverged: {'; '.join(shown) or 'none'}."


def _known(rows: pd.Series | pd.DataFrame) -> list[str]:
    return [name for name in LINES if name in rows.index]


def _behaviour(table: pd.DataFrame, further: Mapping[str, pd.DataFrame]) -> str:
    rows = replicates(table).merge(further["thresholds"], on="arm")
    at = rows[np.isclose(rows["coefficient"], middle_coefficient(table))]
    base = at[np.isclose(at["threshold_lr"], base_rate(table))].groupby("line")
    columns = {
        "L0": base["l0"].mean(),
        "FVU": base["fvu"].mean(),
        "median theta": base["theta"].mean(),
        "moved": base["moved"].mean(),
        "dead": base["dead"].mean(),
        f"steps to L0 {TARGET}": base["steps"].mean(),
        "reached": base["steps"].agg(lambda steps: steps.notna().mean()),
    }
    if len(orders := further.get("spread", pd.DataFrame())):
        wide = orders.pivot_table(index="line", columns="threshold_lr", values="spread")
        columns |= {f"spread, lr {rate:g}": wide[rate] for rate in wide}
    known = pd.DataFrame(columns)
    return (
        f"  Thresholds at coefficient {middle_coefficient(table):g} and threshold lr "
        f"{base_rate(table):g}, means over seeds: moved = share with |theta - start| > "
        f"{MOVED:.0%} of the start; reached = share of seeds that reach L0 {TARGET}. Spread, of "
        "one seed and two data orders at each rate = standard deviation of log theta over orders "
        "at equal initial weights, median over latents that fired:\n"
        + text(known.loc[_known(known)], 3)
    )


# -- figures --------------------------------------------------------------------------------------


def relative(table: pd.DataFrame) -> Figure:
    """FVU against the batch estimate's at equal L0 and the base rate, a curve a state:
    straight-through, and with exact jumps."""
    rows, panels = frontier(table), {}
    for pull, kind in PULL_NAMES.items():
        states = {state + pull: state for state in STATES}
        panels[kind] = rows.assign(state=rows["line"].map(states))
    return relative_fvu(panels, "state", STATES, "batch")


def effects_drawn(found: pd.DataFrame) -> Figure:
    """Effect of each state, straight-through, with exact jumps, and the mean of both.

    Args:
        found: what `effects` gives.
    """
    shown = {"A without B": "straight-through", "A with B": "exact jump", "A": "both"}
    rows = found[found["contrast"].isin(shown)]
    rows = rows.assign(contrast=rows["state"] + ", " + rows["contrast"].map(shown))
    names = [f"{state}, {each}" for state in SQUARES for each in shown.values()]
    figure = plots.figure(3.4, 3.4)
    (axes,) = figure.axes
    bands.effects(rows, axes, names={name: name for name in names}, by="way", unit=100)
    axes.set_xlabel("100 x change of log FVU")
    axes.tick_params(axis="y", labelsize=6)
    return plots.legend_below(figure, axes)


def spread_drawn(orders: pd.DataFrame) -> Figure:
    """Spread of thresholds over data orders against the thresholds' learning rate.

    Args:
        orders: the table `spread`.
    """
    figure = plots.figure(3.4, 3.4)
    (axes,) = figure.axes
    means = orders.groupby(["line", "threshold_lr"])["spread"].mean()
    for name in _known(means.unstack()):
        rows = means.loc[name]
        axes.plot(rows.index, rows, label=name, **look(name))
    axes.set(
        xlabel="learning rate of the thresholds", ylabel="spread of log theta over data orders"
    )
    loglog(axes)
    rates = sorted(set(orders["threshold_lr"]))
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    return plots.legend_below(figure, axes)
