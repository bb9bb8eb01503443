"""The two 2x2s of the factorial, and what their contrasts are called in an answer."""

from collections.abc import Iterable, Mapping

import pandas as pd

from sae_bench.contrasts import Interval, Outcome, Square, difference

WAYS = {
    f"gradients {path}": Square(
        "ReLU + L1", f"JumpReLU + L1 ({short})", "ReLU + L0 (input)", f"JumpReLU + L0 ({short})"
    )
    for path, short in (("to theta only", "theta"), ("straight-through to the input", "input"))
}
"""The two 2x2s: A is the activation, B the penalty. ReLU + L0 has one way only and is in both."""

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


def intervals(rows: pd.DataFrame) -> dict[str, Interval]:
    """The contrasts of one way and outcome, by name.

    Args:
        rows: of what `contrasts.compare` gives.
    """
    return {r.contrast: Interval(r.mean, r.low, r.high, r.n) for r in rows.itertuples()}


def summary(found: pd.DataFrame, outcomes: Iterable[Outcome]) -> list[str]:
    """The verdicts alone, one line an outcome.

    Args:
        found: what `contrasts.compare` gives.
        outcomes: those to name.
    """
    said = []
    for outcome in outcomes:
        parts = [
            f"{cause(outcome, intervals(rows))} ({way})"
            for way, rows in found[found["outcome"] == outcome.name].groupby("way", sort=False)
        ]
        direction = "rises" if is_share(outcome) else "falls"
        said.append(f"  {outcome.name} {direction} with {', '.join(parts)}.")
    return said


def sentence(outcome: Outcome, found: Mapping[str, Interval], places: int) -> str:
    """One outcome in one way: its cause, both effects, and what both do together."""
    say = Interval.points if is_share(outcome) else Interval.percent
    if not places:
        return f"  {outcome.name}: the cells have no common range, so no answer."
    text = (
        f"  {outcome.name}, {places} places, {'rises' if is_share(outcome) else 'falls'} with "
        f"{cause(outcome, found)}: JumpReLU for ReLU {say(found['A'])}, L0 for L1 "
        f"{say(found['B'])}, interaction {say(found['interaction'])}, together "
        f"{say(found['together'])}."
    )
    if found["interaction"].excludes_zero:  # main effects then hide what happens in either row
        text += (
            f" One by one: JumpReLU for ReLU {say(found['A without B'])} under L1, "
            f"{say(found['A with B'])} under L0; L0 for L1 {say(found['B without A'])} with ReLU, "
            f"{say(found['B with A'])} with JumpReLU."
        )
    return text


def paths(table: pd.DataFrame, outcomes: Iterable[Outcome]) -> list[str]:
    """Gradients to the input against gradients to theta only, at matched L0."""
    said, outcomes = [], list(outcomes)
    for penalty in ("L0", "L1"):
        to_input, to_theta = (f"JumpReLU + {penalty} ({path})" for path in ("input", "theta"))
        if not {to_input, to_theta} <= set(table["cell"]):
            continue
        found = {
            outcome: difference(table, outcome, "cell", to_input, to_theta)[0]
            for outcome in outcomes
        }
        shown = ", ".join(
            f"{outcome.name} {(Interval.points if is_share(outcome) else Interval.percent)(each)}"
            for outcome, each in found.items()
        )
        said.append(f"  under {penalty}: {shown}.")
    return said
