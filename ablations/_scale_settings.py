"""The settings of `scale`: the four cells in the factorial's own and in seven others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from ablations import factorial
from ablations._lines import LINES, TUNED
from ablations._squares import WAYS
from ablations._starts import offset
from ablations.factorial import TEXT, Factorial
from architectures import JumpReLUSAE
from sae_bench.ablation import Data, Preset
from sae_bench.arm import Arm
from sae_bench.text import After

WAY, SQUARE = next(iter(WAYS.items()))
BASE, RETUNED = "base", "wide-tuned"
PARTS = (BASE, "layer-5", "wide", "long", "slower", "wide-long", "wide-start", RETUNED)
WIDE = ("wide", "wide-long", "wide-start", RETUNED)
"""Those of more latents."""
BY = dict.fromkeys(SQUARE.cells, 2.0)
"""What the trials for `RETUNED` divide the rates by."""
TRIED_AT = 30.0
"""L0 at which they are compared."""
FIRES = 0.075
"""w_i . (x - b_dec) above which latents fire at the start: some 2.6 standard deviations."""
START = {
    name: TUNED[name][0].start for name in SQUARE.cells if LINES[name].architecture is JumpReLUSAE
}
"""Where thresholds start."""
ALIKE = tuple((name, round(FIRES - START.get(name, 0.0), 3)) for name in SQUARE.cells)
"""Offsets with which the same latents fire at the start of all cells."""


@dataclass(frozen=True)
class Core(Factorial):
    """The four cells.

    Args:
        offsets: of lines whose encoder biases start below 0, and by how much.
        again: lines and places of settings that are trained in another order of the data, too.
    """

    offsets: tuple[tuple[str, float], ...] = ()
    again: tuple[tuple[str, int], ...] = ()

    def slowed(self, by: Mapping[str, float]) -> Self:
        """With the learning rates of these lines divided."""
        tuned = zip(LINES, self.tuned, strict=True)
        return self.replace(
            tuned=tuple(
                tuple(each.slower(by.get(name, 1.0)) for each in trials) for name, trials in tuned
            )
        )


@dataclass(frozen=True)
class Elsewhere(Core):
    """A preset with what else is tried.

    Args:
        site: the other one.
        width: the other number of latents.
        times: as many training tokens.
        cached: times as many cached tokens.
    """

    site: str = "layers.5.resid_post"
    width: int = 16_384
    times: int = 10
    cached: int = 5

    def parts(self) -> dict[str, Preset]:
        """The factorial's own setting, then the others."""
        data = self.data
        assert isinstance(data, Data)
        more, longer = data.replace(tokens=self.cached * data.tokens), float(self.times)
        long = self.replace(data=more, recipe=self.recipe.stretched(longer))
        wider = self.replace(
            d_sae=self.width,
            data=more,
            recipe=self.recipe.stretched(self.cached / 2).replace(lr_warmup=200),
            settings=self.settings[1:5],
        )
        eighth = dict.fromkeys(SQUARE.cells, 8.0)
        of_relu = tuple((name, FIRES) for name in SQUARE.cells if name not in START)
        return {
            BASE: self,
            "layer-5": self.replace(data=data.replace(site=self.site)),
            "wide": self.replace(d_sae=self.width),
            "long": long.replace(again=(("ReLU + L1", 1), ("JumpReLU + L1 (theta)", 4))),
            "slower": long.slowed(dict.fromkeys(SQUARE.cells, math.sqrt(longer))),
            "wide-long": wider.slowed(eighth | dict.fromkeys(START, 2.0)).replace(offsets=of_relu),
            "wide-start": wider.slowed(eighth).replace(offsets=ALIKE),
            RETUNED: self.replace(
                d_sae=self.width,
                recipe=self.recipe.replace(lr_warmup=200),
                settings=self.settings[:5],
                offsets=ALIKE,
            ).slowed(BY),
        }


def arms(preset: Core) -> list[Arm]:
    """Those of the factorial, with their start, and those trained again."""
    made, offsets = [], dict(preset.offsets)
    for name in preset.lines:
        of_line = factorial.arms(preset.replace(lines=(name,)))
        made += [offset(arm, offsets[name]) if name in offsets else arm for arm in of_line]
    for line, index in preset.again:
        one = preset.replace(lines=(line,), settings=(index,))
        made += [
            replace(arm, recipe=arm.recipe.replace(data_seed=1 + arm.recipe.data_seed))
            for arm in factorial.arms(one)
        ]
    return made


PRESETS = {
    "study": Elsewhere(
        data=factorial.STUDY.data,
        d_sae=factorial.STUDY.d_sae,
        recipe=factorial.STUDY.recipe,
        seeds=(3,),
        lines=SQUARE.cells,
    ),
    "tuning": Core(
        data=Data(text=After(TEXT, 4_700), tokens=131_072, lm_tokens=0),
        d_sae=16_384,
        recipe=factorial.RECIPE.replace(lr_warmup=200),
        seeds=(100,),
        lines=SQUARE.cells,
        settings=(2, 4),
        tuned=tuple(tuple(each.slower(by) for by in (2, 4, 8, 16)) for (each,) in TUNED.values()),
        offsets=ALIKE,
    ),
}
