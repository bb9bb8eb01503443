"""Do the factorial's conclusions survive another site, a wider SAE, and ten times the tokens?

The four cells of the first 2x2 of `ablations/factorial.py` (activation and penalty, JumpReLU with
gradients to theta only) in that study's setting (`base`) and in seven others:

    layer-5    residual stream after layer 5 of 30 instead of layer 9
    wide       16,384 latents instead of 1,152
    long       4M training tokens instead of 400k, all schedules stretched alike, out of 1M cached
               tokens of 5 times as many documents: 4 passes instead of 2
    slower     `long` with all learning rates divided by sqrt(10)
    wide-long  `wide` with 1M training tokens, one pass over the cache of `long`, a warm-up of 200
               steps, lower rates, another start of ReLU, four settings
    wide-start that with this start and these rates in all cells
    wide-tuned that with rates from trials

Stated before the run:
- Outcomes: log FVU, and the share of L0 in latents above 10%, at L0 = 16, 32, 64, 128: means over
  those places that lie inside the range of all four cells, monotone interpolation in log L0.
- Nothing is tuned anew (`slower` divides all rates by one factor; the later parts of 16,384 latents
  have rates and starts from trials). Rates, start of the thresholds,
  eps and coefficients are the factorial's; an effect that differs may differ because these fit it
  less well.
- One seed, so no intervals. Over seeds the factorial's main effects on FVU spread by less than one
  point, those on the share by less than three: smaller differences mean nothing.
- A main effect survives if it has the sign it has in `base` and at least half its size; it is
  weaker if it has the sign and is larger than that spread. Effects that are no larger than that in
  `base` are not judged. (Added after a second review: an effect that is closer to half the size
  than that spread is not decided.)

Changed after a review of the first report:
- Six settings a line instead of three, between which interpolation moved shares by ten points and
  which left no common place at L0 = 128. The seed is one of the factorial's.
- Simple effects are said place by place, since main effects hid a change of sign; shares above
  other bounds are given, as the effect on frequent latents hangs on the bound.

Seen after the run of `long`: 2 of its 24 arms collapsed within 78 steps, after three quarters of
the training (ReLU + L1 at 0.012, 100% of the latents dead, and JumpReLU + L1 at 0.031, 92%), which
left holes of factors of 4 and 7 in L0. Both were trained once more, in another order of the data
(`again`); arms with over 90% dead are left out, in every part. At the rate that was tuned for a
twentieth of the steps, 8e-3, 9% (ReLU + L1) to 58% of the latents are dead in the others, too.
Hence `slower`, added then, with a rule of its own: no verdict on longer training if any cell has
more than 5% dead at L0 32, or a higher FVU than in `base` at equal L0. After a review the rule
holds for every part, and effects on the loss of the language model and on the number of latents
above 10% are told.

Seen after the run of `wide`: with the rates and the start of 1,152 latents 20% to 31% of the
latents are dead in ReLU + L1 (L0 16 to 128), 68% and more in JumpReLU + L1, 71% and more in ReLU +
L0, and over 90% in all six arms of JumpReLU + L0, so that this cell is left out and nothing is
compared. FVU is higher than with a fourteenth of the latents. The damage seems to be done at the
start (tried by hand, no table): with 28 times as many unit rows as dimensions, and their transpose
as encoder, x_hat is some 14 times x (ReLU; with thresholds 9 times: FVU 190 and 71), all codes fall
at once, and overshoot to L0 of about 0 within 35 steps, whatever the coefficient. After 150 steps
of JumpReLU + L0 at 4.3e-4, 99% of the latents are silent with a warm-up of 40 steps, 45% with 100,
8% with 200; of ReLU + L1 at 0.032, 81% with 200, 2% with 100 and an eighth of the rate (but silent
latents may come back: its arm with a warm-up of 40 ends with 20% dead). So trials for this width
(`sae-bench run factorial --preset wide-tuning --out results/runs/wide-tuning`) have a warm-up of
200 steps: both rates divided by 1, 2, 4, 8 and 16, two settings each, half the tokens, another
seed, other documents; then all cells with twice the rates, since the best lay at that end.

Seen after these trials (`tables/wide_tuning.csv`): lower rates are worse in every cell, perhaps
since 390 steps are too few for them (JumpReLU + L0 at L0 = 40: FVU 0.15, 0.19, 0.26, 0.36, 0.50),
and doubled ones leave 28% to 99% of the latents dead (FVU is lower in three of the four cells).
With the rates of 1,152 latents 7% to 25% of JumpReLU's latents are dead, not 68% and more; ReLU +
L1 has 11% dead at L0 30 and 74% at 91, ReLU + L0 92% and more. ReLU's cells are no better than FVU
0.28 at L0 = 40, twice that of 1,152 latents: this width wants more steps, with ReLU a better start,
too.

Seen in trials of that by hand (no table; seed and documents of the other trials, 200k tokens, a
warm-up of 200 steps): with ReLU's encoder biases starting at -0.075, some 2.6 standard deviations
of pre, where 120 latents fire and x_hat of most tokens is near their mean (`_starts.py`), and an
eighth of the rates, ReLU + L1 has FVU 0.12 at L0 107 with 0.3% dead, ReLU + L0 0.146 at 54 with 14%
(at a quarter 0.130 at 69 with 1%, 0.143 at 39 with 21%; at the full rates 0.178 at 17 and 0.167 at
18 with 59% and 73%). Thresholds that start at 0.054 or 0.075 seemed to bring JumpReLU no more, at
equal numbers of dead latents, than other rates do at 0.04 (L1: 0.03); at 0.11 some 90% die. Hence
`wide-long`, under the same rule: ReLU with those biases and an eighth of the rates, JumpReLU with
its own start and half of them.

Seen after the run of `wide-long`: FVU is lower than in `base` in every cell, but 13%, 15% and 48%
of the latents are dead at L0 32 in ReLU + L0 and JumpReLU under L1 and L0, 1% in ReLU + L1.
JumpReLU, with its old start, overshoots within 60 steps (L0 467 to 14 under L1), ReLU does not. In
a trial by hand with biases that let JumpReLU, too, fire above 0.075 alone (thresholds start at 0.04
and 0.03 as before) and an eighth of the rates, 5% and 9% are dead after 200k tokens (FVU 0.149 at
L0 39 under L1, 0.144 at 56 under L0), as with ReLU. Hence `wide-start`: the same latents fire at
the start of all cells and one factor of the rates, else as `wide-long`, whose arms of ReLU it takes
over. Noticed while it ran: by the rule it can give no verdict, since ReLU + L0, taken over, has 13%
dead. It shows what is left of JumpReLU's deficit in `wide-long`.

Seen later: a count of dead latents in a fixed number of tokens is no measure across widths. In 33k
tokens the mean latent fires 900 times at 1,152 latents and L0 32, 65 times at 16,384, and a rare
one not at all. In nearly all arms of `wide-long` and `wide-start` most of those that do not fire in
the held-out tokens do in 475k tokens, 29 a latent, as many as 33k are for 1,152 latents
(`_unfired.py`; tried by hand on four arms of `wide-start` first). That does not say why cells
differ at one width.

Stated then, before the trials for it had ended: a last part, `wide-tuned`, whose cells have the
start of `wide-start` and rates from trials, equally many a cell (preset `tuning`, `sae-bench run
scale --preset tuning --out results/runs/scale-tuning`: the factorial's rates divided by 4, 8 and
16, two settings each, 400k tokens, seed 100, documents that no part reports).
- The eighth stays in a cell unless another trial has an FVU at L0 40 that is lower by more than 1%;
  one whose settings lie on one side of 40 has no value and cannot win. If one wins that lies at an
  end, a factor of 2 more is tried there once, in all cells. Cells that stay are arms of
  `wide-start`, which were seen.
- The rule holds (no verdict where FVU is higher than in `base`, or over 5% are dead at L0 32), with
  dead latents counted over 29 tokens a latent. `wide-long` and `wide-start` stay under the count
  they were run under. (By the other `wide-start` would pass, with 4.9% in one cell: JumpReLU's
  effect would be weaker, L0's would survive.)
- Frequent at another width is what fires more than ten times as often as the mean; shares above 5,
  10 and 20% are told.
- (A first version, half an hour older, had no bar on dead latents; a review refused that.)
- In every part an effect is held against that of `base` over the same places of L0 (before: over
  all places of `base`), since effects grow with L0. The loss of the language model is compared at
  places where each cell costs it more than 0.01 nats.

Seen in the trials (`tables/wide_start_tuning.csv`), a half tried as well: faster is better in every
cell, as before. At L0 40 five of sixteen have no value, two of them with a lower FVU at a lower L0
than the best has at 40; the rule would have given a half, a quarter, an eighth and a half (ReLU +
L1, ReLU + L0, JumpReLU + L1, JumpReLU + L0). So they are compared at 30, where three have none, two
of them in ReLU + L1, and a half wins in all four: FVU 0.133 in ReLU + L1, 0.123 in ReLU + L0, 0.122
and 0.119 in JumpReLU under L1 and L0; at a quarter 0.141, 0.126, 0.133 and 0.141. It is at the end
of the range still, and 28 to 62% of its latents do not fire in the 17k held-out tokens of the
trials (a quarter: 2 to 40%). Changed then, before the run: `wide-tuned` has a half of the rates in
all cells, the 400k tokens and the warm-up of 200 steps of the trials, the text of `base` and five
settings. What fires on none of 475k tokens is counted on more of that text.

Seen after the run of `wide-tuned`: the rule gives no verdict, 9% to 21% of the latents fire on none
of 475k tokens at L0 32. Its densest arm of ReLU + L1 has 81% dead latents (held-out), fewer than
what is left out, and an L0 that another arm has, too. It cost L0 128; without it ReLU + L1 is 1%
higher at 64, the main effects on FVU are -7.4% and -5.0%.

Layer 20 was the other site at first. Over 90% of the latents died there in every cell. 0.02% of its
tokens, at the first positions of contexts, have norms of up to 100 times the median; whether that
is why was not tested (no table was kept): `paper.py`, which leaves such positions out (`Settled`),
trains at layers 14 and 22, which have them, too, with 8% dead in JumpReLU and none in ReLU. After
layer 5 no norm exceeds 11 times the median, but 1% of the tokens (some of " the" and of single
spaces) have more than 4 times and hold a third of the squared norm; after layer 9 none has. So the
two sites differ in more than depth.

Scale of `study`: 24 arms a part, 26 in `long`. On two cores an arm takes 0.5 minutes in `base` and
`layer-5`, 2 in `wide`, 2 to 3.5 in `long` and `slower`, whose activations take 15 minutes to
extract; a part is some 4 minutes to measure. `wide-long` has 16 arms of about 4 minutes,
`wide-start` 8 beside them, `wide-tuned` 20 of 1.5; its 32 trials take an hour.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations._fallen import described, fallen
from ablations._lines import prepared, trials
from ablations._outcomes import FVU, PLACES, with_shares
from ablations._places import levels
from ablations._scale_effects import SHARE, SPREAD, base_there, judged, outcomes, unjudged
from ablations._scale_figures import effects, frontiers
from ablations._scale_settings import (
    BASE,
    PARTS,
    PRESETS,
    RETUNED,
    SQUARE,
    TRIED_AT,
    WAY,
    WIDE,
    arms,
)
from ablations._squares import by_place
from ablations._survival import FITTING, against, from_base, unfit
from ablations._unfired import EACH, unfired
from sae_bench.contrasts import at_each_place, compare, intervals
from sae_bench.results import Results

UNFIRED = "unfired"
COLLAPSED = 0.9
"""Share of dead latents above which an arm is left out."""


COUNTS = {RETUNED: UNFIRED}
"""How dead latents are counted, where not by the held-out tokens."""


def _whole(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each part that has all four cells."""
    rows = {part: table[table["part"] == part] for part in PARTS}
    return {part: each for part, each in rows.items() if {*SQUARE.cells} <= {*each["cell"]}}


def measured_effects(table: pd.DataFrame) -> pd.DataFrame:
    """The contrasts of each part: columns of `contrasts.compare`, where way is the part.

    Args:
        table: what `prepared` gives, with its parts and shares.
    """
    found = [
        compare(rows, {part: SQUARE}, outcomes(rows), "cell")
        for part, rows in _whole(table).items()
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _trained(results: Results) -> pd.DataFrame:
    table = with_shares(prepared(results.table), results.frequencies)
    none = pd.DataFrame(columns=["part", "arm", UNFIRED])
    return table.merge(results.further.get(UNFIRED, none), on=["part", "arm"], how="left")


def _measured(results: Results) -> pd.DataFrame:
    table = _trained(results)
    return table[table["dead"] <= COLLAPSED]


def _collapsed(table: pd.DataFrame) -> Iterator[str]:
    """What was left out."""
    lost = table[table["dead"] > COLLAPSED]
    shown = [
        f"{arm.part}, {arm.cell} at {arm.coefficient:g} (FVU {arm.fvu:.2f}, {arm.dead:.0%})"
        for arm in lost.itertuples()
    ]
    if shown:
        yield f"Left out, over {COLLAPSED:.0%} of the latents dead: {'; '.join(shown)}."


def _beside_base(table: pd.DataFrame) -> Iterator[str]:
    for part in PARTS[1:]:
        if made := against(table, part, BASE):
            shown = "; ".join(f"{cell} {each.percent()}" for cell, each in made.items())
            yield f"  {part} against {BASE}, {FVU.name}, cell by cell: {shown}."


def _levels(table: pd.DataFrame) -> Iterator[str]:
    """Dead latents, and the share of L0 in frequent ones, of each cell in each part."""
    for name, outcome in (
        ("dead latents", "dead"),
        (f"latents that never fire in {EACH} tokens a latent", UNFIRED),
        ("share of L0 above 10%", SHARE.y),
    ):
        for part in PARTS:
            rows = table[table["part"] == part]
            if outcome in rows and rows[outcome].notna().any():
                yield f"  {part}, {name} {levels(rows, outcome, 'cell', PLACES)}."


def answer(results: Results) -> str:
    """Main effects of each part and whether they survive, then simple effects place by place. Of
    several rates a cell, which are tuning: the trials of each."""
    table = _measured(results)
    if (table.groupby(["part", "cell"])["lr"].nunique() > 1).any():
        return trials(table, TRIED_AT).to_string(index=False)
    found, whole = measured_effects(table), _whole(table)
    if BASE not in whole:
        return ""
    without = unfit(table, PARTS[1:], BASE, COUNTS)
    there = {part: base_there(rows, whole[BASE]) for part, rows in whole.items()}
    said = [
        f"Main effects in the 2x2 with {WAY.removesuffix('*')}, one seed, means over common places "
        "of L0 (in brackets simple effects); a conclusion survives with the same sign and at least "
        f"half the size that {BASE} has over the same places, and is not decided where that hangs "
        "on less than a point (FVU) or three (shares), within which a difference may be none; no "
        f"verdict where rates do not fit (a cell has over {FITTING:.0%} dead at L0 32, in "
        f"{RETUNED} over {EACH} tokens a latent, or a higher FVU than in {BASE} at equal L0):"
    ]
    said += [
        *judged(found, there, without, BASE),
        *unjudged(found),
        *_reached(found),
        *(f"  Rates do not fit {part}: {why}." for part, why in without.items()),
        *_beside_base(table),
        *_levels(table),
        *_collapsed(_trained(results)),
    ]
    if "thresholds" in results.further:
        said += described(table, results.further["thresholds"])
    parts = [part for part in PARTS if part in set(found["way"])]
    for part in parts:
        said.append(f"Place by place, {part}:")
        for outcome in SPREAD:
            said += by_place(table[table["part"] == part], outcome, WAY)
    run = [part for part in PARTS if part in set(results.table["part"])]
    for words, missing in (
        ("Not compared, since a cell has no arm left", [each for each in run if each not in parts]),
        ("Not run", [part for part in PARTS if part not in run]),
    ):
        said += [f"{words}: {', '.join(missing)}."] * bool(missing)
    return "\n".join(said)


def _reached(found: pd.DataFrame) -> list[str]:
    """Both factors together."""
    rows = found[(found["outcome"] == FVU.name)]
    shown = [
        f"{part} {np.expm1(intervals(each)['together'].mean):+.1%}"
        for part, each in rows.groupby("way", sort=False)
    ]
    return [f"  Both together, {FVU.name}: {'; '.join(shown)}."]


def contrasts(results: Results) -> pd.DataFrame:
    """The contrasts of each part, means over places and place by place, then each cell against its
    own in `BASE` (`from_base`); one seed, so no intervals."""
    table = _measured(results)
    parts = [
        at_each_place(rows, {part: SQUARE}, outcomes(rows), "cell")
        for part, rows in _whole(table).items()
    ]
    found = pd.concat(parts, ignore_index=True)
    beside = [from_base(table, part, BASE) for part in PARTS[1:]]
    return pd.concat(
        [found.assign(l0=np.exp(found.pop("at")).round(6)), *beside], ignore_index=True
    )


FURTHER = {"thresholds": fallen, UNFIRED: unfired}


CAPTIONS = {
    "frontiers": (
        "One seed. `layer-5`: another site; `long`: ten times the tokens; `slower`: that at lower "
        "rates. Two arms of `long` with over 90% of the latents dead are left out, for which two "
        "in another order of the data stand. x axes differ."
    ),
    "width": (
        "One seed. `base`: 1,152 latents, the others 16,384 with a longer warm-up. `wide-long`: "
        "2.5 times the tokens, another start of ReLU and an eighth of its rates, half of "
        "JumpReLU's; `wide-start`: as many, that start and an eighth of the rates in all cells; "
        "`wide-tuned`: that start, a half of the rates and the tokens of `base`; one of its arms "
        "of ReLU + L1 has collapsed (81% dead). x axes differ."
    ),
    "effects": (
        "Main effects of one seed: no intervals. No verdict: learning rates do not fit (above)."
    ),
}


def figures(results: Results) -> dict[str, Figure]:
    """FVU and the share of L0 in frequent latents against L0, a column a part that has all four
    cells; main effects."""
    table = _measured(results)
    drawn, whole = {}, _whole(table)
    others = tuple(part for part in PARTS if part not in WIDE)
    for name, shown in (("frontiers", others), ("width", (BASE, *WIDE))):
        if rows := {part: whole[part] for part in shown if part in whole}:
            drawn[name] = frontiers(rows)
    if len(found := measured_effects(table)):
        lost = unfit(table, PARTS[1:], BASE, COUNTS)
        without = {part: f"{part} (no verdict)" for part in lost}
        drawn["effects"] = effects(found.replace({"way": without}), tuple(SPREAD))
    return drawn


__all__ = ["FURTHER", "PRESETS", "answer", "arms", "figures"]
