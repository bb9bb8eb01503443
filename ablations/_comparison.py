"""What a grid of architectures says: at matched L0, at equal compute, and of common latents."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._compute import PLACES, at_compute, common_places, gained, sentences
from ablations._lines import prepared
from ablations._matching import AT, EVERY, RANDOM, TOKENS, shares
from ablations._places import apart, by_place, intervals_of, levels, over, reached
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
    if table["train_tokens"].nunique() > 1 and (places := common_places(table)):
        where = ", ".join(map(str, places))
        said.append(
            f"  FVU, mean over L0 {where}, at the most compute that an architecture and "
            f"{COMPARED_TO} have both spent:"
        )
        spent = at_compute(table, further.get("products", pd.DataFrame()))
        said += [*sentences(spent, COMPARED_TO), f"  {gained(spent)}."]
    if len(found := further.get("matches", pd.DataFrame())):
        said += _of_latents(found)
    return "\n".join(said)


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
    columns = ["outcome", "of", "to", "l0", "mean", "low", "high", "n"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


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
    said = ["  Latents whose decoder directions match mutually (cosine above 0.7) in another seed:"]
    for l0 in AT:
        same = shares(found, l0)
        own = ", ".join(_own(found[found["at"] == l0], str(name)) for name in same.index)
        said.append(f"    arms nearest to L0 {l0}: {own}.")
        every, tokens = (_range(same[column]) for column in (EVERY, TOKENS))
        said.append(f"      {_across(same)}")
        chance = f"among random directions at most {same[RANDOM].max():.0%}"
        said.append(
            f"      in all arms of the other seeds near that L0 {every}; among centred activations "
            f"of as many random tokens {tokens}; {chance}."
        )
    return said


def _across(same: pd.DataFrame) -> str:
    """Which other architecture has the most and the fewest of an architecture's latents."""
    names = [name for name in same.index if name in same.columns]
    pairs = {(a, b): float(same.loc[a, b]) for a in names for b in names if a != b}
    if not pairs:
        return "one architecture alone."
    (most, fewest) = max(pairs, key=pairs.__getitem__), min(pairs, key=pairs.__getitem__)
    shown = (f"{pairs[pair]:.0%} of {pair[0]}'s in {pair[1]}" for pair in (most, fewest))
    return f"between architectures {' down to '.join(shown)}."


def _range(values: "pd.Series[float]") -> str:
    low, high = values.agg(["idxmin", "idxmax"])
    return f"{values[low]:.1%} ({low}) to {values[high]:.1%} ({high})"


def _own(found: pd.DataFrame, name: str) -> str:
    """An architecture beside itself: mean and range over ordered pairs, its L0."""
    rows = found[(found["architecture"] == name) & (found["to_architecture"] == name)]
    low, mean, high = rows["mutual_0.7"].agg(["min", "mean", "max"])
    return f"{name} (L0 {rows['l0'].mean():.0f}) {mean:.0%} ({low:.0%} to {high:.0%})"


def _of_one_seed(table: pd.DataFrame) -> str:
    said = [
        f"Architectures against {COMPARED_TO} + L1, one seed: no intervals, so no verdict. (Of "
        f"{LOSS.name} arms whose interval over documents is above 0.)"
    ]
    names = [name for name in table["architecture"].unique() if name != COMPARED_TO]
    if COMPARED_TO not in set(table["architecture"]):
        return said[0]
    heard = table[table["delta_lm_loss_low"] > 0] if "delta_lm_loss_low" in table else table
    for outcome, rows in ((FVU, table), (LOSS, heard)):
        for name in names:
            if shown := by_place(apart(rows, outcome, "architecture", name, COMPARED_TO)):
                said.append(f"  {outcome.name}, {name}: {shown}.")
    return "\n".join(said)


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
