"""What `_vanishing` found, summed up: shares of firings with intervals, latents that are lost."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations._matched import ALL, BOTH, LINES
from ablations._vanishing import CLASSES, CONTROL, NEAR, TOKENS
from sae_bench import bands, plots
from sae_bench.contrasts import Interval, t_interval
from sae_bench.stats import bootstrap_ratio

FEW = 0.02
"""Share of firings that makes no difference."""
OWN = "own text"
"""What the cut to the short context takes and the control does not: the difference of shares."""


def named(found: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """A further table with part, line and seed of its arms.

    Args:
        found: of all parts.
        table: of the run, with part, line and seed.
    """
    known = table[["arm", "part", "line", "seed"]].drop_duplicates("arm")
    return found.drop(columns="part", errors="ignore").merge(known, on="arm")


def shares(found: pd.DataFrame, short: str) -> pd.DataFrame:
    """Share of firings that vanish: one row a (part, line, cut), the cuts and `OWN`. Columns share,
    low, high (95% over documents, firings of all seeds together), appeared (as a share of the same
    firings), seeds_low, seeds_high (95% t-interval of the shares of the seeds).

    Args:
        found: `vanishing`, with part, line and seed.
        short: name of the cut to the short context.
    """
    rows = []
    for (part, line), mine in found.groupby(["part", "line"], sort=False):
        sums = mine.groupby(["cut", "document"])[["firings", "vanished", "appeared"]].sum()
        seeds = mine.groupby(["cut", "seed"])[["firings", "vanished"]].sum()
        of_seed = (seeds["vanished"] / seeds["firings"]).unstack("cut")
        of_seed[OWN] = of_seed[short] - of_seed[CONTROL]
        whole, control = sums.loc[short], sums.loc[CONTROL]
        more = whole["firings"].sum() / control["firings"].sum()  # nearly 1
        apart = whole.assign(vanished=whole["vanished"] - more * control["vanished"])
        apart["appeared"] = whole["appeared"] - more * control["appeared"]
        by_cut = {str(cut): sums.loc[cut] for cut in mine["cut"].unique()} | {OWN: apart}
        for cut, counts in by_cut.items():
            firings = counts["firings"].to_numpy(float)
            low, high = bootstrap_ratio(counts["vanished"].to_numpy(float), firings)
            over_seeds = t_interval(of_seed[cut].to_numpy())
            rows.append(
                {"part": part, "line": line, "cut": cut, "documents": len(firings)}
                | {"share": counts["vanished"].sum() / firings.sum(), "low": low, "high": high}
                | {"appeared": counts["appeared"].sum() / firings.sum()}
                | {"seeds_low": over_seeds.low, "seeds_high": over_seeds.high}
            )
    return pd.DataFrame(rows)


def said_of(
    found: pd.DataFrame, short: str, middle: str, lines: Sequence[str], parts: Sequence[str]
) -> list[str]:
    """A line of text a (line, training context).

    Args:
        found: what `shares` gives.
        short, middle: names of the cuts.
        lines, parts: in their order.
    """
    by = found.set_index(["line", "part", "cut"])
    said = []
    for line, part in product(lines, parts):
        own = by.loc[(line, part, OWN)]
        share, low, high = (float(own[name]) for name in ("share", "low", "high"))
        over = Interval(share, low, high, int(own["documents"]))
        cut, less, control = (_of(by.loc[(line, part, name)]) for name in (short, middle, CONTROL))
        said.append(
            f"  {line} trained on {part}: {cut}; last {middle} tokens {less}; control {control}; "
            f"more than in the control {over.points()} vanish, over seeds "
            f"[{100 * own['seeds_low']:+.2f}, {100 * own['seeds_high']:+.2f}], "
            f"{100 * own['appeared']:+.2f} points appear."
        )
    return said


def _of(row: pd.Series) -> str:
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{row['share']:.1%} [{low:.1f}, {high:.1f}] vanish, {row['appeared']:.1%} appear"


WORDS = {
    (True, True): f"Yes, but by less than {100 * FEW:g} points",
    (True, False): "Yes",
    (False, True): "No",
    (False, False): "Not decided",
}


def elicits_other(found: pd.DataFrame, part: str) -> str:
    """Whether more vanishes than by the control, for SAEs trained on a context and for all lines:
    yes if the intervals over documents lie above 0, no if they end below `FEW`.

    Args:
        found: what `shares` gives.
        part: the training context.
    """
    own = found[(found["cut"] == OWN) & (found["part"] == part)]
    if own.empty:
        return WORDS[False, False]
    return WORDS[bool((own["low"] > 0).all()), bool((own["high"] < FEW).all())]


def by_class(by_frequency: pd.DataFrame, short: str) -> pd.DataFrame:
    """Where it is: share of firings that vanish minus that of the control, by firing frequency:
    columns line, frequency (upper end of a class), mean, firings; no rows of classes without any.

    Args:
        by_frequency: `latents` of all parts, with line.
        short: name of the cut to the short context.
    """
    by = by_frequency.groupby(["line", "cut", "frequency"])[["firings", "vanished"]].sum()
    share = (by["vanished"] / by["firings"].where(by["firings"] > 0)).unstack("cut")
    apart = {"mean": share[short] - share[CONTROL], "firings": by["firings"].unstack("cut")[short]}
    return pd.DataFrame(apart).dropna().reset_index()


def lost(by_frequency: pd.DataFrame) -> pd.DataFrame:
    """Share of the latents counted that lose more than half of their firings, all arms together:
    columns cut, mean, latents.

    Args:
        by_frequency: `latents` of all parts.
    """
    sums = by_frequency.groupby("cut", sort=False)[["lost", "latents"]].sum()
    share = sums["lost"] / sums["latents"].clip(lower=1)
    return pd.DataFrame({"mean": share, "latents": sums["latents"]}).reset_index()


def tabulated(found: pd.DataFrame, by_frequency: pd.DataFrame, sets: Sequence[str]) -> pd.DataFrame:
    """`shares` (contrast: the training context; low, high: over documents), those of a class of
    firing frequency (`by_class`, all training contexts) and latents that are `lost`, one a row;
    columns outcome, evaluate, line, contrast and cut say which.

    Args:
        found: `vanishing`, with part, line and seed.
        by_frequency: `latents` of all parts, with line.
        sets: lengths of the short, the middle and the long contexts.
    """
    short, _, long = sets
    of_parts = shares(found, short).rename(columns={"part": "contrast", "share": "mean"})
    of_classes = by_class(by_frequency, short).assign(contrast=ALL, cut=OWN)
    firings = pd.concat([of_parts, of_classes]).assign(outcome="firings that vanish")
    latents = lost(by_frequency).assign(line=BOTH, contrast=ALL, outcome="latents that are lost")
    return pd.concat([firings, latents], ignore_index=True).assign(evaluate=long)


def described(
    found: pd.DataFrame, by_frequency: pd.DataFrame, sets: Sequence[str], parts: Sequence[str]
) -> list[str]:
    """Whether other latents fire with the short context, which and how many. Arguments as in
    `tabulated`; parts: training contexts in their order."""
    short, middle, long = sets
    vanish = shares(found, short)
    share = lost(by_frequency).set_index("cut")["mean"]
    of_class = by_class(by_frequency, short)
    said = [
        f"Do other latents fire with {short}? {elicits_other(vanish, long)}, by the SAEs trained "
        f"on {long}. Firings of {TOKENS} tokens with {middle} or more of their own document before "
        f"them in contexts of {long}, of the SAEs nearest to L0 {NEAR}, when the model reads the "
        f"last {short} tokens only; 95% over {vanish['documents'].max()} documents. The control "
        "counts what foreign text elicits as well, which makes the difference too small; the cut "
        f"puts a boundary before the last {short} tokens where the control has one already, which "
        "may make it too large:",
        *said_of(vanish, short, middle, LINES, parts),
        f"  Latents that lose more than half of their firings: {share[short]:.1%} by the last "
        f"{short} tokens, {share[middle]:.1%} by the last {middle}, {share[CONTROL]:.1%} in the "
        "control.",
    ]
    for line in LINES:
        shown = ", ".join(
            f"{100 * r.mean:+.1f} up to {r.frequency:.1%} ({r.firings:,.0f})"
            for r in of_class[of_class["line"] == line].itertuples()
        )
        said.append(
            f"  Last {short} minus control by firing frequency of the latent, {line}, in points "
            f"(firings): {shown}."
        )
    return said


def turnover(
    found: pd.DataFrame,
    by_frequency: pd.DataFrame,
    short: str,
    middle: str,
    lines: Sequence[str],
    parts: Sequence[str],
) -> Figure:
    """Shares that vanish by training context, a panel a line, bars over documents; and by firing
    frequency of the latents, all arms together.

    Args:
        found: what `shares` gives.
        by_frequency: `latents` of all parts.
        short, middle: names of the cuts.
        lines, parts: panels and training contexts, from left to right.
    """
    names = {short: f"last {short} tokens", middle: f"last {middle} tokens"}
    names |= {CONTROL: f"last {short}, foreign text cut (control)"}
    figure = plots.figure(8.2, 2.8, 1, len(lines) + 1)
    *panels, last = figure.axes
    for line, axes in zip(lines, panels, strict=True):
        rows = found[found["line"] == line].set_index(["cut", "part"])
        for index, (cut, name) in enumerate(names.items()):
            _bars(rows.loc[cut].reindex(list(parts)), axes, index, name)
        axes.set_xticks(range(len(parts)), list(parts))
        axes.set(xlabel="trained on", ylabel="firings that vanish (%)")
        axes.set_title(line, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.25, linewidth=0.5)
    sums = by_frequency.groupby(["cut", "frequency"])[["firings", "vanished"]].sum()
    share = 100 * sums["vanished"] / sums["firings"].where(sums["firings"] > 0)
    for index, cut in enumerate(names):
        colour, at = bands.COLOURS[index], share.loc[cut].reindex(list(CLASSES))
        last.plot(range(len(CLASSES)), at, bands.MARKERS[index] + "-", color=colour, markersize=3)
    below = [f"≤ {100 * end:g}%" for end in CLASSES]
    last.set_xticks(range(len(CLASSES)), below)
    last.set(xlabel="firing frequency of the latent", ylabel="firings that vanish (%)")
    last.set_ylim(bottom=0)
    last.grid(axis="y", alpha=0.25, linewidth=0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


def _bars(rows: pd.DataFrame, axes: Axes, index: int, name: str) -> None:
    share, low, high = (100 * rows[column].to_numpy(float) for column in ("share", "low", "high"))
    axes.errorbar(
        np.arange(len(rows)) + 0.15 * (index - 1),
        share,
        yerr=np.nan_to_num(np.stack([share - low, high - share]).clip(min=0)),
        fmt=bands.MARKERS[index],
        color=bands.COLOURS[index],
        markersize=3.5,
        linewidth=0,
        elinewidth=1.2,
        capsize=2,
        label=name,
    )
