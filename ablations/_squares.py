"""The two 2x2s of the factorial, and what their contrasts are called in an answer."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from sae_bench.contrasts import (
    Interval,
    Outcome,
    Square,
    difference,
    intervals,
    matched,
    t_interval,
)

WAYS = {
    f"gradients {path}": Square(
        "ReLU + L1", f"JumpReLU + L1 ({short})", "ReLU + L0 (input)", f"JumpReLU + L0 ({short})"
    )
    for path, short in (("to theta only*", "theta"), ("straight-through to the input", "input"))
}
"""The two 2x2s: A is the activation, B the penalty. *ReLU + L0 has no theta: its gradients go to
the input in both."""

SIDES = {"A": "JumpReLU for ReLU", "B": "L0 for L1", "interaction": "interaction"}
"""Contrasts, and what they are called."""

GAIN = {(True, True): "both", (True, False): "the activation", (False, True): "the penalty"}


def is_share(outcome: Outcome) -> bool:
    """Whether it is a share, whose rise is looked for, in points; or else the logarithm of a loss,
    whose fall is, in percent."""
    return not outcome.y.startswith("log_")


def verdict(activation: Interval, penalty: Interval, sign: int) -> str:
    """Which of the two has an effect of that sign."""
    a, b = (each.excludes_zero and each.mean * sign > 0 for each in (activation, penalty))
    return GAIN.get((a, b), "neither")


def cause(outcome: Outcome, found: Mapping[str, Interval]) -> str:
    """What makes the outcome rise (a share) or fall (a loss)."""
    return verdict(found["A"], found["B"], 1 if is_share(outcome) else -1)


def direction(found: Mapping[str, Interval]) -> str:
    """What the outcome falls and rises with: factors whose main effects exclude 0."""
    ways = {"falls": -1, "rises": 1}
    causes = {word: verdict(found["A"], found["B"], sign) for word, sign in ways.items()}
    said = [f"{word} with {what}" for word, what in causes.items() if what != "neither"]
    return " and ".join(said) or "changes with neither"


def summary(found: pd.DataFrame, outcomes: Iterable[Outcome]) -> list[str]:
    """The verdicts alone, one line an outcome.

    Args:
        found: what `contrasts.compare` gives.
        outcomes: those to name.
    """
    said = []
    for outcome in outcomes:
        parts = [
            f"{direction(intervals(rows))} ({way})"
            for way, rows in found[found["outcome"] == outcome.name].groupby("way", sort=False)
        ]
        said.append(f"  {outcome.name} {', '.join(parts)}.")
    return said


def saying(outcome: Outcome) -> Callable[[Interval], str]:
    """How its effects are said: shares in points, losses in percent."""
    return Interval.points if is_share(outcome) else Interval.percent


def sentence(outcome: Outcome, found: Mapping[str, Interval], places: int) -> str:
    """One outcome in one way: what it changes with, both effects, and what both do together."""
    say = saying(outcome)
    if not places:
        return f"  {outcome.name}: the cells have no common range, so no answer."
    text = (
        f"  {outcome.name}, {places} places, {direction(found)}: JumpReLU for ReLU "
        f"{say(found['A'])}, L0 for L1 {say(found['B'])}, interaction {say(found['interaction'])}, "
        f"together {say(found['together'])}."
    )
    if found["interaction"].excludes_zero:  # main effects then hide what happens in either row
        text += f" One by one: {_one_by_one(found, say)}."
    return text


def _one_by_one(found: Mapping[str, Interval], say: Callable[[Interval], str]) -> str:
    return (
        f"JumpReLU for ReLU {say(found['A without B'])} under L1, {say(found['A with B'])} under "
        f"L0; L0 for L1 {say(found['B without A'])} with ReLU, {say(found['B with A'])} with "
        "JumpReLU"
    )


def by_place(table: pd.DataFrame, outcome: Outcome, way: str) -> list[str]:
    """The simple effects and the interaction at each place of L0, one line a place: what means over
    places hide."""
    square = WAYS[way]
    places = outcome.places(table, "cell", square.cells)
    contrasts = square.contrasts(matched(table, outcome.x, outcome.y, places, "cell"))
    say, said = saying(outcome), []
    for place in places:
        found = {name: t_interval(frame[place].to_numpy()) for name, frame in contrasts.items()}
        said.append(
            f"  {outcome.name}, L0 {math.exp(place):.0f}: {_one_by_one(found, say)}; interaction "
            f"{say(found['interaction'])}."
        )
    return said


INPUT = {penalty: f"JumpReLU + {penalty} (input)" for penalty in ("L0", "L1")}


def between_paths(table: pd.DataFrame, outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """JumpReLU with gradients to the input (of) minus that with gradients to theta only (to), under
    either penalty, mean over the places that both reach: columns outcome, of, to, places (how
    many), mean, low, high, n."""
    rows, cells = [], set(table["cell"])
    for penalty, of in INPUT.items():
        to = f"JumpReLU + {penalty} (theta)"
        for outcome in outcomes if {of, to} <= cells else ():
            found, places = difference(table, outcome, "cell", of, to)
            row = {"outcome": outcome.name, "of": of, "to": to, "places": len(places)}
            rows.append(row | vars(found))
    return pd.DataFrame(rows)


def paths(table: pd.DataFrame, outcomes: Sequence[Outcome]) -> list[str]:
    """`between_paths` in words, a line a penalty."""
    found, by_name = between_paths(table, outcomes), {each.name: each for each in outcomes}
    said = []
    for penalty, of in INPUT.items() if len(found) else ():
        rows = found[found["of"] == of]
        shown = ", ".join(
            f"{r.outcome} {saying(by_name[r.outcome])(Interval.of(r))}" for r in rows.itertuples()
        )
        said += [f"  under {penalty}: {shown}."] * bool(shown)
    return said
