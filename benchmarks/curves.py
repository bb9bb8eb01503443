"""What our step costs: its time against d_sae, L0, batch and number of arms, and where it pays.

Around one base (TopK and JumpReLU; d_sae 4,608, L0 64, batch 2,048, one arm) each axis is varied by
itself; the dense reference is measured beside it, in rounds, as in `benchmarks.speed`. Arms are
trained in lockstep: the same batch for one after the other, and `step_ms` and `encoder_products`
are those of all of them together.

Writes results/tables/speed_curves.csv (columns as speed.csv) and the figures
results/figures/speed/curve_cost (milliseconds of one arm's step) and curve_pays (dense / ours).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from benchmarks import figures
from benchmarks.case import Case
from benchmarks.sides import run
from benchmarks.speed import base_of, case_of, common, setting_of
from benchmarks.table import Table
from sae_bench.errors import InputError

LIBRARIES = ("ours", "dense")
AXES: Mapping[str, Sequence[Any]] = {
    "d_sae": (1152, 2304, 4608, 9216, 18432),
    "l0": (8, 16, 32, 64, 128, 256),
    "batch": (256, 512, 1024, 2048, 4096),
    "arms": (1, 2, 4, 8),
}
"""Field of a case -> its values."""


def along(base: Case, architectures: Sequence[str]) -> list[tuple[str, Case]]:
    """Every point with the axis that it lies on; the base lies on all."""
    return [
        (axis, replace(case_of(name, base), **{axis: value}))
        for name in architectures
        for axis, values in AXES.items()
        for value in values
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common(made, 300)
    made.add_argument("--architectures", nargs="+", default=["TopK", "JumpReLU"], metavar="NAME")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = parser().parse_args(words)
    try:
        points = along(base_of(arguments), arguments.architectures)
        table = Table(arguments.out / "tables" / "speed_curves.csv")
        setting = setting_of(arguments, LIBRARIES)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    cases = dict.fromkeys(case for _, case in points)
    failed = run([dict.fromkeys(LIBRARIES, case) for case in cases], setting, table)
    parts = [
        table.frame([setting.key(library, case)]).assign(axis=axis)
        for axis, case in points
        for library in LIBRARIES
    ]
    shown = pd.concat(parts).rename(columns={"l0": "measured_l0", "wanted_l0": "l0"})
    figures.curves(shown, arguments.out / "figures" / "speed")
    print(shown[["axis", *figures.SHOWN[:4], "batch", "arms", "step_ms"]].to_string(index=False))
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
