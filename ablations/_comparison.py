"""What a grid of architectures says: at matched L0, at equal compute, and of common latents."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._compute import (
    PLACES,
    at_compute,
    at_equal,
    common_places,
    gained,
    longer,
    sentences,
)
from ablations._lines import prepared
from ablations._matching import EVERY, RANDOM, TOKENS, common, shares
from ablations._places import (
    apart,
    by_place,
    in_places,
    intervals_of,
    levels,
    over,
    reached,
)
from ablations._squares import saying
from sae_bench import plots
from sae_bench.contrasts import Outcome, Square
from sae_bench.results import Results

COMPARED_TO = "ReLU"
PAIRS = (("JumpReLU", "Gated"), ("JumpReLU", "BatchTopK"), ("BatchTopK", "TopK"))
"""Compared with each other, besides."""
LOGS = tuple(float(x) for x in np.log(PLACES))
FVU = Outcome("log_fvu", "log_l0", "FVU", LOGS)
LOSS = Outcome("log_delta_lm_loss", "log_l0", "delta LM loss", LOGS)
SHARE = Outcome("l0_share_above_10pct", "log_l0", "share of L0 in latents above 10%", LOGS)
OUTCOMES = (FVU, LOSS, SHARE)
MATCHING = "latents that match"
COLUMNS = ["outcome", "of", "to", "l0", "mean", "low", "high", "n"]
"""Of differences."""


def full_budget(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest budget."""
    return table[table["train_tokens"] == table["train_tokens"].max()]


def squares(table: pd.DataFrame) -> dict[str, Square]:
    """Of each architecture a square whose contrast A is that architecture minus `COMPARED_TO`.

    Args:
        table: what `prepared` gives.
    """
    cells = table.groupby("architecture", sort=False)["cell"].first()
    to = cells.get(COMPARED_TO)
    return {
        str(name): Square(to, cell, to, cell)
        for name, cell in cells.items()
        if to is not None and cell != to
    }


def verdict(results: Results) -> str:
    """Architectures against ReLU + L1, place by place and in the mean: paired over seeds with 95%
    t-intervals; then at equal compute, and latents that match. Of one seed differences alone."""
    table, further = prepared(results.table), results.further
    full = full_budget(table)
    if table["seed"].nunique() < 2:
        return _of_one_seed(full)
    said = [
        f"Architectures against {COMPARED_TO} + L1, {table['seed'].nunique()} paired seeds, 95% "
        "t-intervals (the order of a list is that of its means, and is not tested):"
    ]
    for outcome in OUTCOMES:
        said += [f"  {outcome.name}, equal tokens:", *_against(full, outcome)]
    said.append(f"  {SHARE.name}, each by itself, {levels(full, SHARE.y, 'architecture')}.")
    said.append(f"  Dead latents {levels(full, 'dead', 'architecture')}.")
    for tokens in sorted(table["train_tokens"].unique())[-2::-1]:
        part = table[table["train_tokens"] == tokens]
        for outcome in (FVU, LOSS):
            said += [f"  {outcome.name}, {tokens:,.0f} tokens:", *_against(part, outcome)]
    if len(found := further.get("documents", pd.DataFrame())):
        said += _of_documents(found)
    if len(spent := _spent(results)):
        where = ", ".join(map(str, common_places(table)))
        said.append(
            f"  FVU, mean over L0 {where}, at the most compute that an architecture and "
            f"{COMPARED_TO} have both spent:"
        )
        said += [*sentences(at_equal(spent, COMPARED_TO)), f"  {gained(longer(spent))}."]
    if len(found := further.get("matches", pd.DataFrame())):
        said += _of_latents(common(found))
    return "\n".join(said)


def _spent(results: Results) -> pd.DataFrame:
    """What `at_compute` gives; nothing where there is one budget or no common place."""
    table = prepared(results.table)
    if table["train_tokens"].nunique() < 2 or not common_places(table):
        return pd.DataFrame()
    return at_compute(table, results.further.get("products", pd.DataFrame()))


def tabulated(results: Results) -> pd.DataFrame:
    """What `verdict` tells of differences: `differences` at each budget (train_tokens); where there
    are several, `at_equal` and `longer` in log FVU; and `common` latents, whose outcome is the
    share of them. Of one seed the differences of the largest budget alone."""
    table = prepared(results.table)
    if table["seed"].nunique() < 2:
        return _alone(full_budget(table))
    found = [
        differences(part).assign(train_tokens=tokens)
        for tokens, part in table.groupby("train_tokens")
    ]
    if len(spent := _spent(results)):
        over_budgets = (at_equal(spent, COMPARED_TO), longer(spent))
        found += [rows.assign(outcome=FVU.y) for rows in over_budgets]
    if len(matches := results.further.get("matches", pd.DataFrame())):
        found.append(common(matches).assign(outcome=MATCHING))
    return pd.concat([rows for rows in found if len(rows)] or found, ignore_index=True)


Pairs = dict[tuple[str, str], pd.DataFrame]


def _pairs(full: pd.DataFrame, outcome: Outcome) -> Pairs:
    """What `apart` gives of each architecture over `COMPARED_TO`, by means, then of `PAIRS`."""
    names = list(full["architecture"].unique())
    others = [name for name in names if name != COMPARED_TO] if COMPARED_TO in names else []
    pairs = [(name, COMPARED_TO) for name in others]
    found = {pair: apart(full, outcome, "architecture", *pair) for pair in pairs}
    found = dict(sorted(found.items(), key=lambda item: over(item[1], reached(item[1])).mean))
    further = [pair for pair in PAIRS if set(pair) <= set(names)]
    return found | {pair: apart(full, outcome, "architecture", *pair) for pair in further}


def differences(full: pd.DataFrame) -> pd.DataFrame:
    """Columns outcome, of, to, l0 (NaN: mean over the places that both reach), mean, low, high, n.

    Args:
        full: what `prepared` gives, of one budget.
    """
    rows = []
    for outcome in OUTCOMES:
        for (of, to), found in _pairs(full, outcome).items():
            if places := reached(found):
                row = {"outcome": outcome.y, "of": of, "to": to}
                rows.append(intervals_of(found, places).assign(**row))
    return pd.concat(rows, ignore_index=True)[COLUMNS] if rows else pd.DataFrame(columns=COLUMNS)


def _against(full: pd.DataFrame, outcome: Outcome) -> list[str]:
    say, found = saying(outcome), _pairs(full, outcome)
    said = []
    for (of, to), each in found.items():
        name = of if to == COMPARED_TO else f"{of} over {to}"
        if places := reached(each):
            mean = f", mean {say(over(each, places))}" if len(places) > 1 else ""
            said.append(f"    {name}: {by_place(each, say)}{mean}.")
        else:
            said.append(f"    {name}: no common range of L0.")
    return said


def _of_documents(found: pd.DataFrame) -> list[str]:
    rows = found[found["contrast"] == "A"]
    said = []
    for name, part in rows.groupby("outcome", sort=False):
        shown = ", ".join(
            f"{r.way} {np.expm1(r.mean):+.0%} [{np.expm1(r.low):+.0%}, {np.expm1(r.high):+.0%}]"
            for r in part.itertuples()
        )
        said.append(f"    {name}: {shown}.")
    return [
        "  Noise of the text, which those intervals do not hold: means over places of the first "
        f"seed, 95% over {rows['documents'].iloc[0]} documents drawn anew (draws in which a loss "
        "is not positive are left out):",
        *said,
    ]


def _of_latents(found: pd.DataFrame) -> list[str]:
    """What `common` gives, in words."""
    said = ["  Latents whose decoder directions match mutually (cosine above 0.7) in another seed:"]
    for l0, rows in found.groupby("near"):
        own = ", ".join(_own(row) for row in rows[rows["of"] == rows["to"]].itertuples())
        said.append(f"    arms nearest to L0 {l0}: {own}.")
        said.append(f"      {_across(rows)}")
        by = {to: part.set_index("of")["mean"] for to, part in rows.groupby("to")}
        said.append(
            f"      in all arms of the other seeds near that L0 {_range(by[EVERY])}; among centred "
            f"activations of as many random tokens {_range(by[TOKENS])}; among random directions "
            f"at most {by[RANDOM].max():.0%}."
        )
    return said


def _across(rows: pd.DataFrame) -> str:
    """Which other architecture has the most and the fewest of an architecture's latents."""
    pairs = rows[rows["to"].isin(rows["of"]) & (rows["of"] != rows["to"])].reset_index(drop=True)
    if pairs.empty:
        return "one architecture alone."
    ends = pairs.loc[[pairs["mean"].idxmax(), pairs["mean"].idxmin()]]
    shown = (f"{row.mean:.0%} of {row.of}'s in {row.to}" for row in ends.itertuples())
    return f"between architectures {' down to '.join(shown)}."


def _range(values: "pd.Series[float]") -> str:
    low, high = values.agg(["idxmin", "idxmax"])
    return f"{values[low]:.1%} ({low}) to {values[high]:.1%} ({high})"


def _own(row: Any) -> str:
    """An architecture beside itself: its L0, mean and range over ordered pairs."""
    return f"{row.of} (L0 {row.l0:.0f}) {row.mean:.0%} ({row.least:.0%} to {row.most:.0%})"


def _of_one_seed(full: pd.DataFrame) -> str:
    said = [
        f"Architectures against {COMPARED_TO} + L1, one seed: no intervals, so no verdict. (Of "
        f"{LOSS.name} arms whose interval over documents is above 0.)"
    ]
    names = {outcome.y: outcome.name for outcome in (FVU, LOSS)}
    found = _alone(full)
    for (y, name), rows in found.groupby(["outcome", "of"], sort=False) if len(found) else ():
        said.append(f"  {names[y]}, {name}: {in_places(rows)}.")
    return "\n".join(said)


def _alone(full: pd.DataFrame) -> pd.DataFrame:
    """Each architecture minus `COMPARED_TO`, of one seed: as `differences`, but without means over
    places, and of delta LM loss those arms whose interval over documents is above 0.

    Args:
        full: what `prepared` gives, of one budget.
    """
    names, rows = list(full["architecture"].unique()), []
    heard = full[full["delta_lm_loss_low"] > 0] if "delta_lm_loss_low" in full else full
    for outcome, known in ((FVU, full), (LOSS, heard)):
        for name in (each for each in names if each != COMPARED_TO and COMPARED_TO in names):
            found = apart(known, outcome, "architecture", name, COMPARED_TO)
            row = {"outcome": outcome.y, "of": name, "to": COMPARED_TO}
            rows.append(intervals_of(found, found.columns).assign(**row))
    found = pd.concat(rows, ignore_index=True)[COLUMNS] if rows else pd.DataFrame(columns=COLUMNS)
    return found[found["l0"].notna()]


def matching(found: pd.DataFrame, l0: int = 32) -> Figure:
    """Share of latents of the row's architecture that the column's has, at another seed, in the
    arms nearest to an L0.

    Args:
        found: what `matches` gives.
        l0: one of `AT`.
    """
    same = shares(found, l0)
    last = [name for name in (EVERY, TOKENS, RANDOM) if name in same]
    same = same[[*same.columns.drop(last), *last]]
    most = max(same.to_numpy().max(), 0.01)
    drawn = plots.figure(5.2, 3.4)
    (axes,) = drawn.axes
    axes.imshow(same.to_numpy(), vmin=0, vmax=most, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(same.columns)), list(same.columns), rotation=40, ha="right")
    axes.set_yticks(range(len(same.index)), list(same.index))
    for (row, column), share in np.ndenumerate(same.to_numpy()):
        colour = "white" if share < most / 2 else "black"
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=6)
    axes.set(xlabel="... found by", ylabel=f"latents of ..., L0 near {l0}")
    return drawn
