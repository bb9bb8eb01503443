"""Main effects of each part of `scale`, in words."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from ablations._outcomes import FLOOR, FREQUENT, FVU, LOSS, OTHER_BOUNDS
from ablations._scale_settings import SQUARE, WAY
from ablations._squares import SIDES, is_share
from ablations._survival import survives
from sae_bench.contrasts import Outcome, compare, matched

SHARE = FREQUENT[0]
SPREAD = {FVU: 0.01, SHARE: 0.03}
"""Main effects up to which may be none."""
SIMPLE = {
    "A": {"A without B": "under L1", "A with B": "under L0"},
    "B": {"B without A": "with ReLU", "B with A": "with JumpReLU"},
}
"""The simple effects behind each main effect."""
JUDGED = SPREAD | dict.fromkeys(OTHER_BOUNDS, SPREAD[SHARE])
BESIDE = (
    LOSS,
    next(each for each in FREQUENT if (each.y, each.x) == ("above_10pct", "log_l0")),
)
"""Outcomes that were not stated before the run."""


def outcomes(rows: pd.DataFrame) -> list[Outcome]:
    """What is compared in one part: the loss at those places alone where each cell costs the model
    more than `FLOOR`.

    Args:
        rows: of one part, as `prepared`.
    """
    levels = matched(rows, LOSS.x, LOSS.y, LOSS.at, "cell")
    told = tuple(levels.columns[(levels > np.log(FLOOR)).all()])
    loss = [replace(LOSS, at=told)] if told else []
    return [*JUDGED, *loss, *BESIDE[1:]]


def base_there(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """The main effects of `base` over those places that a part reaches: columns of
    `contrasts.compare`.

    Args:
        rows: of the part, as `prepared`.
        base: likewise.
    """
    found = [pd.DataFrame()]
    for outcome in JUDGED:
        if at := tuple(outcome.places(rows, "cell", SQUARE.cells)):
            found.append(compare(base, {WAY: SQUARE}, [replace(outcome, at=at)], "cell"))
    return pd.concat(found, ignore_index=True)


def _words(outcome: Outcome, effect: float) -> str:
    return f"{100 * effect:+.1f} points" if is_share(outcome) else f"{np.expm1(effect):+.1%}"


def _sized(found: pd.DataFrame, outcome: Outcome, side: str) -> str:
    """A main effect of one part, and the simple effects behind it."""
    known = found.set_index("contrast")
    simple = ", ".join(
        f"{_words(outcome, float(known.loc[name, 'mean']))} {words}"
        for name, words in SIMPLE[side].items()
    )
    places = int(known["places"].iloc[0])
    return f"{_words(outcome, float(known.loc[side, 'mean']))} ({simple}; {places} places)"


def judged(
    found: pd.DataFrame, there: Mapping[str, pd.DataFrame], without: Iterable[str], base: str
) -> Iterator[str]:
    """Every main effect in every part, and what becomes of it.

    Args:
        found: columns of `contrasts.compare`, where way is the part.
        there: `base_there` of each part.
        without: parts on which no verdict is given.
        base: the part that the others are compared with.
    """
    for outcome, least in JUDGED.items():
        for side in ("A", "B"):
            rows = found[(found["outcome"] == outcome.name) & (found["contrast"] == side)]
            rows = rows.set_index("way")
            if not rows.loc[base, "places"]:
                continue
            shown = []
            for part, effect in rows["mean"].items():
                of_part = found[(found["outcome"] == outcome.name) & (found["way"] == part)]
                shown.append(f"{part} {_sized(of_part, outcome, side)}")
                if part == base:
                    continue
                same = there[str(part)]
                same = same[(same["outcome"] == outcome.name) & (same["contrast"] == side)]
                size = float(same["mean"].iloc[0]) if len(same) else math.nan
                if len(same) and rows.loc[part, "places"] != rows.loc[base, "places"]:
                    shown[-1] += f", {base} {_words(outcome, size)} there"
                verdict = survives(float(effect), size, least)
                shown[-1] += ": no verdict" if part in without else f": {verdict}"
            yield f"  {SIDES[side]}, {outcome.name}: {'; '.join(shown)}."


def unjudged(found: pd.DataFrame) -> Iterator[str]:
    """Main effects on what was not stated before the run, in the parts that have a common place.

    Args:
        found: as in `judged`.
    """
    for outcome in BESIDE:
        for side in ("A", "B"):
            parts = found[found["outcome"] == outcome.name].groupby("way", sort=False)
            shown = "; ".join(
                f"{part} {_sized(rows, outcome, side)}"
                for part, rows in parts
                if rows["places"].iloc[0]
            )
            if shown:
                yield f"  {SIDES[side]}, {outcome.name} (not judged): {shown}."
