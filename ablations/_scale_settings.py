"""The settings of `scale`: the four cells in the factorial's own and in seven others."""

import math
from dataclasses import dataclass, replace

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
BASE = "base"
PARTS = (BASE, "layer-5", "wide", "long", "slower", "wide-long", "wide-start", "wide-tuned")
WIDE = ("wide", "wide-long", "wide-start", "wide-tuned")
"""Those of more latents."""
RETUNED = ("wide-tuned",)
"""Parts with rates from trials of their own."""
BY = dict.fromkeys(SQUARE.cells, 8.0)
"""What their trials divide the rates by."""
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
        others = (
            self,
            self.replace(data=data.replace(site=self.site)),
            self.replace(d_sae=self.width),
            long.replace(again=(("ReLU + L1", 1), ("JumpReLU + L1 (theta)", 4))),
            long.replace(tuned=tuple((each.slower(math.sqrt(longer)),) for (each,) in self.tuned)),
            wider.replace(
                tuned=tuple(
                    (each.slower(2.0 if name in START else 8.0),)
                    for name, (each,) in zip(LINES, self.tuned, strict=True)
                ),
                offsets=tuple((name, FIRES) for name in self.lines if name not in START),
            ),
            wider.replace(
                tuned=tuple((each.slower(8.0),) for (each,) in self.tuned),
                offsets=ALIKE,
            ),
            wider.replace(
                tuned=tuple(
                    (each.slower(BY.get(name, 1.0)),)
                    for name, (each,) in zip(LINES, self.tuned, strict=True)
                ),
                offsets=ALIKE,
            ),
        )
        return dict(zip(PARTS, others, strict=True))


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
        tuned=tuple(tuple(each.slower(by) for by in (4, 8, 16)) for (each,) in TUNED.values()),
        offsets=ALIKE,
    ),
}
