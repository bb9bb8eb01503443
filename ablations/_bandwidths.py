"""Part `bandwidth` of `kernels`: the rectangle's eps, straight-through and with exact jumps.

Rates of the thresholds are dealt with as in `_threshold_training`: all lines at the base rate, and
each line at the rate that the other seeds choose for it at the middle coefficient. Shares, which no
rate's gain moves, are compared at the base rate.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations._estimators import PULL_NAMES, PULLS, look
from ablations._matched import in_words
from ablations._places import apart, in_places, intervals_of, levels
from ablations._relative import relative_fvu
from ablations._squares import saying
from ablations._threshold_noise import loglog, text
from ablations._threshold_training import (
    DEAD,
    FVU,
    SHARE,
    WAYS,
    base_rate,
    decided,
    frontier,
    rates_chosen,
    replicates,
    word,
)
from ablations._windows import EXPLAINED, FLOOR, SEEN
from sae_bench import plots
from sae_bench.contrasts import Interval, Outcome, interpolate, matched, t_interval

REFERENCE = 0.02
"""The bandwidth that others are held against."""
COMMON = (24, 32, 48)
"""Values of L0 over which means are taken, the same for all bandwidths."""
AT = 32
"""L0 at which FVU is drawn."""
GONE = 0.5
"""Share of dead latents above which an arm has run away."""
EXACT = PULL_NAMES[", exact jump"]


def line_of(bandwidth: float, pull: str) -> str:
    """The name of a line."""
    return f"eps {bandwidth:g}{pull}"


def lined(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the names of their lines.

    Args:
        table: what `named` gives.
    """
    pairs = zip(table["bandwidth"], table["pull"], strict=True)
    return table.assign(line=[line_of(bandwidth, pull) for bandwidth, pull in pairs])


def effects(table: pd.DataFrame, outcome: Outcome = FVU) -> pd.DataFrame:
    """A line minus another, at each place of L0 that both reach and in the mean over `COMMON`,
    paired over seeds: columns outcome, way (how rates were dealt with; but for FVU all at one),
    against, bandwidth, and those of `intervals_of`. `against` is a kind, for a bandwidth minus the
    reference within it; or `BETWEEN`, for exact jumps minus straight-through at equal bandwidth.

    Args:
        table: what `lined` gives.
        outcome: what is compared.
    """
    widths, there, found = sorted(set(table["bandwidth"])), set(table["line"]), []
    pairs = [
        (kind, width, line_of(width, pull), line_of(REFERENCE, pull))
        for pull, kind in PULL_NAMES.items()
        for width in widths
        if width != REFERENCE
    ]
    first, exact = PULL_NAMES
    pairs += [(BETWEEN, width, line_of(width, exact), line_of(width, first)) for width in widths]
    for way, rows_of in list(WAYS.items())[: None if outcome == FVU else 1]:
        rows = rows_of(table)
        for against, width, of, to in pairs:
            if {of, to} <= there:
                values = apart(rows, outcome, "line", of, to)
                row = {"outcome": outcome.name, "way": way, "against": against, "bandwidth": width}
                found.append(intervals_of(values, COMMON).assign(**row))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


BETWEEN = f"{EXACT} against {PULL_NAMES['']}"


def described(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    """The effects, what they decide, and what the thresholds did.

    Args:
        table: what `lined` gives.
        seen: what `windows` gives; may be empty.
    """
    found = effects(table)
    said = [
        f"Bandwidth of the rectangle, {table['seed'].nunique()} paired seeds (weights and data "
        f"order), {table['train_tokens'].max():,.0f} tokens. FVU against eps {REFERENCE:g}, means "
        f"over L0 {', '.join(map(str, COMMON))}, 95% t-intervals over seeds (below 0: better; up "
        f"to {FLOOR:.1%} none):"
    ]
    if found.empty:
        return "\n".join([*said, "  there is nothing to compare: no answer."])
    places, means = found[found["l0"].notna()], found[found["l0"].isna()]
    for way, parts in means.groupby("way", sort=False):
        said.append(f"  {way}:")
        said += [_sentence(str(kind), rows) for kind, rows in parts.groupby("against", sort=False)]
    one, own = WAYS
    for kind, rows in means[means["way"] == own].groupby("against", sort=False):
        said.append(f"  So, {own}, {kind}: {decided(_calls(rows), FLOOR)}. Place by place, {one}:")
        here = places[(places["way"] == one) & (places["against"] == kind)]
        said += [f"    eps {eps:g}: {in_places(r)}." for eps, r in here.groupby("bandwidth")]
    lines = [line_of(width, pull) for pull in PULLS for width in sorted(set(table["bandwidth"]))]
    known = matched(frontier(table), FVU.x, FVU.y, list(np.log(COMMON)), "line").notna().all(axis=1)
    reaching = known.groupby("line").any()
    said.append(rates_chosen(table, [line for line in lines if reaching.get(line, False)]))
    said += [*_at_rates(table), *_shares(table, one)]
    said.append(_ran_away(table))
    if len(seen):
        said.append(_behaviour(table, seen))
    return "\n".join(said)


def at_rates(table: pd.DataFrame, outcome: Outcome = FVU) -> pd.DataFrame:
    """The arms of each line's middle coefficient, at every rate, against the base rate's curve of
    the reference (same pull, same seed) at the arm's own L0: columns line, pull, bandwidth,
    rate, seed, l0, apart (NaN outside the curve).

    Args:
        table: what `lined` gives.
        outcome: what is compared.
    """
    rows, found = replicates(table), []
    base = frontier(table)
    middle = base.groupby("line")["coefficient"].median()
    at_middle = rows[np.isclose(rows["coefficient"], rows["line"].map(middle))]
    curves = dict(iter(base.groupby(["line", "seed"])))
    for _, arm in at_middle.iterrows():
        curve = curves.get((line_of(REFERENCE, arm["pull"]), arm["seed"]))
        if curve is not None:
            x, y = (curve[column].to_numpy(float) for column in (outcome.x, outcome.y))
            expected = interpolate(x, y, np.array([arm[outcome.x]]))[0]
            row = {name: arm[name] for name in ("line", "pull", "bandwidth", "seed")}
            found.append(
                row
                | {"rate": arm["threshold_lr"], "l0": arm["l0"], "apart": arm[outcome.y] - expected}
            )
    return pd.DataFrame(found)


def rate_effects(table: pd.DataFrame, outcome: Outcome) -> pd.DataFrame:
    """`at_rates` over seeds: columns outcome, way, against (a kind, as in `effects`), bandwidth,
    threshold_lr, l0 (mean of the arms), mean, low, high, n; no interval where not all seeds lie
    inside the curve. Arguments as there."""
    rows, found = at_rates(table, outcome), []
    by = ["line", "pull", "bandwidth", "rate"]
    for (_, pull, width, rate), each in rows.groupby(by, sort=False) if len(rows) else ():
        apart = each["apart"].to_numpy(float)
        whole = np.isfinite(apart).all()
        row = {
            "outcome": outcome.name,
            "way": OWN_L0,
            "against": PULL_NAMES[pull],
            "bandwidth": width,
        }
        row |= {"threshold_lr": rate, "l0": each["l0"].mean()}
        found.append(row | vars(t_interval(apart if whole else apart[:0])))
    return pd.DataFrame(found)


OWN_L0 = "rates, at the arm's own L0"


def _at_rates(table: pd.DataFrame) -> Iterator[str]:
    yield (
        "  Rates at each line's middle coefficient (added after a review), against the curve of "
        f"eps {REFERENCE:g} with the same pull at threshold lr {base_rate(table):g}, at the arm's "
        "own L0, which is in brackets; a dash where not all seeds lie inside that curve:"
    )
    pulls = {kind: pull for pull, kind in PULL_NAMES.items()}
    for outcome in (FVU, SHARE, DEAD):
        found, say = rate_effects(table, outcome), saying(outcome)
        by = ["against", "bandwidth"]
        for (kind, width), rows in found.groupby(by, sort=False) if len(found) else ():
            shown = ", ".join(
                f"{r.threshold_lr:g} "
                f"{say(Interval.of(r)) if np.isfinite(r.mean) else '-'} "
                f"(L0 {r.l0:.0f})"
                for r in rows.sort_values("threshold_lr").itertuples()
            )
            line = line_of(width, pulls[kind])
            yield f"    {outcome.name.removesuffix(' at matched L0')}, {line}: {shown}."


def _shares(table: pd.DataFrame, way: str) -> Iterator[str]:
    """Effects on frequent and dead latents."""
    yield (
        f"  Frequent and dead latents (added after a review), {way}, against eps {REFERENCE:g}, "
        f"means over L0 {', '.join(map(str, COMMON))}:"
    )
    for outcome in (SHARE, DEAD):
        means = effects(table, outcome)
        means = means[means["l0"].isna() & means["mean"].notna()]
        for kind, rows in means.groupby("against", sort=False):
            shown = (f"{name} {each.points()}" for name, each in _calls(rows).items())
            yield f"    {outcome.name}, {kind}: {', '.join(shown)}."
        yield f"    {outcome.name} {levels(frontier(table), outcome.y, 'line', COMMON)}."


def _ran_away(table: pd.DataFrame) -> str:
    """Which lines have arms most of whose latents are dead, whatever was compared."""
    counts = table.assign(gone=table["dead"] > GONE).groupby("line", sort=False)["gone"]
    shown = [
        f"{line} {gone} of {size} arms"
        for line, gone, size in counts.agg(["sum", "size"]).itertuples()
        if gone
    ]
    return f"  Ran away (over {GONE:.0%} of the latents dead): {'; '.join(shown) or 'none'}."


def _calls(rows: pd.DataFrame) -> dict[str, Interval]:
    return {f"eps {r.bandwidth:g}": Interval.of(r) for r in rows.itertuples()}


def _sentence(kind: str, rows: pd.DataFrame) -> str:
    shown = ", ".join(
        f"{name} {in_words(each)} ({word(each, FLOOR)})"
        if np.isfinite(each.mean)
        else f"{name} does not reach them"
        for name, each in _calls(rows).items()
    )
    return f"    {kind}: {shown}."


def _centre(table: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds at the base rate and each line's middle coefficient: index pull and
    bandwidth."""
    rows = frontier(table).merge(seen, on="arm")
    middle = rows.groupby("line")["coefficient"].transform("median")
    rows = rows[np.isclose(rows["coefficient"], middle)]
    return rows.groupby(["pull", "bandwidth"])[[*MEASURED, *SEEN]].mean()


MEASURED = {"coefficient": "coefficient", "l0": "L0", "fvu": "FVU", "dead": "dead"}
"""Columns of the run's table beside those of `windows`."""


def _behaviour(table: pd.DataFrame, seen: pd.DataFrame) -> str:
    means = _centre(table, seen)
    means.index = pd.Index([line_of(width, pull) for pull, width in means.index])
    return (
        f"  At each line's middle coefficient and threshold lr {base_rate(table):g}, means over "
        f"seeds ({EXPLAINED}):\n" + text(means.rename(columns=MEASURED | SEEN), 3)
    )


# -- figures --------------------------------------------------------------------------------------


def relative(table: pd.DataFrame) -> Figure:
    """FVU against that of the reference at equal L0 and the base rate, a curve a bandwidth:
    straight-through, and with exact jumps."""
    rows = frontier(table)
    rows = rows.assign(width=[line_of(width, "") for width in rows["bandwidth"]])
    panels = {kind: rows[rows["pull"] == pull] for pull, kind in PULL_NAMES.items()}
    names = [line_of(width, "") for width in sorted(set(rows["bandwidth"]))]
    return relative_fvu(panels, "width", names, line_of(REFERENCE, ""))


def at_l0_drawn(table: pd.DataFrame) -> Figure:
    """FVU at L0 = AT against eps, at one rate and each line at its own, and at one rate the share
    of L0 in frequent latents: means over seeds with bars that span them. Lines that do not reach
    that L0 with all seeds are left out."""
    drawn: list[tuple[str, Outcome, np.ufunc, str]]
    drawn = [("FVU", FVU, np.exp, way) for way in WAYS]
    drawn.append((SHARE.name, SHARE, np.positive, next(iter(WAYS))))
    figure = plots.figure(6.8, 3.0, 1, len(drawn))
    first, second, last = figure.axes
    second.sharey(first)
    for (name, outcome, scale, way), axes in zip(drawn, figure.axes, strict=True):
        at = [float(np.log(AT))]
        values = scale(matched(WAYS[way](table), outcome.x, outcome.y, at, "line"))
        for pull in PULLS:
            points = _at_line(table, values.iloc[:, 0], pull)
            mean = points.mean(axis=1, skipna=False)
            bars = np.stack([mean - points.min(axis=1), points.max(axis=1) - mean])
            axes.errorbar(
                points.index, mean, yerr=bars, label=PULL_NAMES[pull], **look("batch" + pull)
            )
        _widths(axes, f"{name} at L0 {AT}")
        axes.set_title(way, fontsize=8)
    second.set_ylabel("")
    last.set(yscale="linear", ylim=(0, None))
    return plots.legend_below(figure, first)


def _at_line(table: pd.DataFrame, values: pd.Series, pull: str) -> pd.DataFrame:
    """Values of the lines of a pull: a row a bandwidth, a column a seed."""
    wide = values.unstack("seed")
    widths = sorted(set(table.loc[table["pull"] == pull, "bandwidth"]))
    return wide.reindex([line_of(width, pull) for width in widths]).set_axis(widths, axis=0)


def thresholds_drawn(table: pd.DataFrame, seen: pd.DataFrame) -> Figure:
    """Thresholds, and how much of the windows lies below 0, against eps."""
    drawn = {"theta": "median theta", "below": "share of windows' samples below 0"}
    figure = _beside(table, seen, drawn)
    figure.axes[1].set_yscale("linear")
    return figure


def counts_drawn(table: pd.DataFrame, seen: pd.DataFrame) -> Figure:
    """Samples in a window, and share of windows with any, against eps; grey: the share if samples
    came independently."""
    drawn = {"count": "samples in a window of a batch", "hit": "windows with any"}
    figure = _beside(table, seen, drawn)
    for _, part in _centre(table, seen).groupby("pull"):
        widths = part.index.get_level_values("bandwidth")
        figure.axes[1].plot(widths, part["expected"], color="grey", linewidth=0.6)
    return figure


def _beside(table: pd.DataFrame, seen: pd.DataFrame, drawn: dict[str, str]) -> Figure:
    """Columns of `windows` against eps at the base rate and the middle coefficient."""
    means = _centre(table, seen)
    figure = plots.figure(6.8, 3.0, 1, len(drawn))
    for (column, title), axes in zip(drawn.items(), figure.axes, strict=True):
        for pull in means.index.unique("pull"):
            part = means.loc[pull]
            axes.plot(part.index, part[column], label=PULL_NAMES[pull], **look("batch" + pull))
        _widths(axes, title)
    return plots.legend_below(figure, figure.axes[0])


def _widths(axes: Axes, title: str) -> None:
    loglog(axes)
    axes.set(xlabel="eps", ylabel=title)
