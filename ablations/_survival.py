"""Whether a conclusion of one setting survives in another, and where that cannot be told."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from ablations._lines import CELLS
from ablations._outcomes import FVU
from ablations._places import apart, intervals_of, reached
from sae_bench.contrasts import Interval, matched

FITTING = 0.05
"""Share of dead latents at L0 32 above which rates do not fit."""
NO_OTHER: Mapping[str, str] = {}


def survives(effect: float, base: float, least: float) -> str:
    """What becomes of an effect of the size `base`.

    Args:
        effect: in the other setting.
        base: in the factorial's.
        least: up to which an effect may be none.
    """
    if not np.isfinite([effect, base]).all():
        return "no common range of L0"
    if abs(base) <= least:
        return "not judged"
    same, half = effect * np.sign(base), abs(base) / 2
    if abs(same - half) < least:
        return f"not decided ({same / abs(base):.0%} of it)"
    if same > half:
        return "survives"
    return "weaker" if same > least else "does not survive"


def from_base(table: pd.DataFrame, part: str, base: str) -> pd.DataFrame:
    """log FVU of each cell of a part minus its own in `base`, place by place and in the mean over
    the places that both reach: columns outcome, way (the part), of (the cell), to (`base`), and
    those of `intervals_of`.

    Args:
        table: what `prepared` gives, with its parts.
        part, base: two of them.
    """
    made = [pd.DataFrame()]
    for cell in CELLS:
        rows = table[table["cell"] == cell]
        if {part, base} <= set(rows["part"]):
            found = apart(rows, FVU, "part", part, base)
            row = {"outcome": FVU.name, "way": part, "of": cell, "to": base}
            made.append(intervals_of(found, reached(found)).assign(**row))
    return pd.concat(made, ignore_index=True)


def against(table: pd.DataFrame, part: str, base: str) -> dict[str, Interval]:
    """The means over places of `from_base`, by cell. Arguments as there."""
    found = from_base(table, part, base)
    means = found[found["l0"].isna()] if len(found) else found
    return {r.of: Interval.of(r) for r in means.itertuples()}


def unfit(
    table: pd.DataFrame, parts: Iterable[str], base: str, counts: Mapping[str, str] = NO_OTHER
) -> dict[str, str]:
    """The parts whose rates do not fit, and why: a cell has no arm, does not reach L0 32, has over
    `FITTING` of its latents dead there, or a higher FVU than in `base`.

    Args:
        table: what `prepared` gives, with its parts.
        parts: that are judged.
        base: what they are compared with.
        counts: columns of dead latents, by part; the others': `dead`.
    """
    found = {}
    cells = set(table.loc[table["part"] == base, "cell"])
    for part in parts:
        kept = set(table.loc[table["part"] == part, "cell"])
        why = [f"no arm of {cell} is left" for cell in CELLS if kept and cell in cells - kept]
        for cell, rows in table[table["part"] == part].groupby("cell"):
            count = counts.get(part, "dead")
            dead = float(matched(rows, "log_l0", count, [math.log(32)], "cell").iloc[0, 0])
            if rows[count].isna().all():
                why.append(f"dead latents were not counted in {cell}")
            elif math.isnan(dead):
                why.append(f"L0 32 is not reached in {cell}")
            elif dead > FITTING:
                why.append(f"{dead:.0%} dead at L0 32 in {cell}")
        for cell, each in against(table, part, base).items():
            if math.isnan(each.mean):
                why.append(f"no common L0 in {cell}")
            elif each.mean > 0:
                why.append(f"FVU {each.percent()} in {cell}")
        if why:
            found[part] = ", ".join(why)
    return found
