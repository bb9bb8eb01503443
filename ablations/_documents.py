"""How much of a contrast is the evaluation text: a bootstrap over held-out documents.

The SAEs of one seed stay as they are; documents are drawn with replacement, L0, FVU and delta LM
loss of every SAE are computed from the documents drawn (the same for all: the noise they share
cancels), and the contrasts from those. This is evaluation noise only; the t-intervals of the
answer are over seeds.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tqdm import trange

from ablations._lines import prepared
from ablations._squares import SIDES
from sae_bench.ablation import Finished
from sae_bench.contrasts import Interval, Outcome, Square, matched
from sae_bench.reconstruction import documents_of
from sae_bench.sae import SparseAutoencoder
from sae_bench.splicing import losses
from sae_bench.stats import LEVEL

REPLICATES = 400


@torch.no_grad()
def _sums(finished: Finished, saes: Sequence[SparseAutoencoder]) -> dict[str, np.ndarray]:
    """Sums over each document: tokens, deviation, scored (documents,); l0, error and delta
    (saes, documents)."""
    cache = finished.cache.held_out
    assert cache is not None
    names, index = np.unique(documents_of(cache), return_inverse=True)
    l0, error = (np.zeros((len(saes), cache.rows)) for _ in range(2))
    start = 0
    mean = torch.cat([x.double() for x in cache.chunks(2048)]).mean(0)
    deviation = []
    for x in cache.chunks(2048):
        for row, sae in enumerate(saes):
            f = sae.encode(x)
            l0[row, start : start + len(x)] = (f > 0).sum(1)
            error[row, start : start + len(x)] = (x - sae.decode(f)).double().square().sum(1)
        deviation.append((x.double() - mean).square().sum(1).numpy())
        start += len(x)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(index, each, len(names)) for each in values])

    tokens, apart = summed(np.stack([np.ones(cache.rows), np.concatenate(deviation)]))
    found = {"tokens": tokens, "deviation": apart, "l0": summed(l0), "error": summed(error)}
    if (size := finished.preset.data.lm_tokens) and (lm := cache.language_model()) is not None:
        spliced = losses(saes, cache, lm, size)
        at = np.searchsorted(names, spliced.documents)
        rows = [np.ones(len(at)), *(loss - spliced.clean for loss in spliced.spliced)]
        scored, *delta = (np.bincount(at, row, len(names)) for row in rows)
        found |= {"scored": scored, "delta": np.stack(delta)}
    return found


def _measures(
    sums: Mapping[str, np.ndarray], counts: Int[np.ndarray, " documents"]
) -> dict[str, Float[np.ndarray, " saes"]]:
    """log_l0, log_fvu and log_delta_lm_loss of each SAE on a multiset of documents."""
    of = {name: values @ counts for name, values in sums.items()}
    ratios = {"log_l0": of["l0"] / of["tokens"], "log_fvu": of["error"] / of["deviation"]}
    if "delta" in of:
        ratios["log_delta_lm_loss"] = of["delta"] / of["scored"]
    return {name: np.log(np.where(value > 0, value, np.nan)) for name, value in ratios.items()}


def document_noise(
    finished: Finished, squares: Mapping[str, Square], outcomes: Sequence[Outcome]
) -> pd.DataFrame:
    """Every contrast with the percentile interval (95%) over documents, for the first seed: columns
    way, outcome, contrast, places, mean, low, high, documents. Empty without the squares' cells."""
    table = prepared(finished.table)
    cells = {cell for square in squares.values() for cell in square.cells}
    table = table[table["cell"].isin(cells) & (table["seed"] == table["seed"].min())]
    if set(table["cell"]) != cells:
        return pd.DataFrame()
    sums = _sums(finished, [finished.sae(arm) for arm in table["arm"]])
    documents = len(sums["tokens"])
    once = np.ones(documents, dtype=np.int64)
    outcomes = [outcome for outcome in outcomes if outcome.y in _measures(sums, once)]
    places = {
        (way, outcome.name): outcome.places(table, "cell", square.cells)
        for way, square in squares.items()
        for outcome in outcomes
    }
    known = table[["cell", "seed", "eval_set"]]

    def contrasts(counts: Int[np.ndarray, " documents"]) -> dict[tuple[str, str, str], float]:
        drawn = known.assign(**_measures(sums, counts))
        found = {}
        for outcome in outcomes:
            every = sorted(
                {place for (_, name), at in places.items() if name == outcome.name for place in at}
            )
            values = matched(drawn, outcome.x, outcome.y, every, "cell")
            for way, square in squares.items():
                at = places[way, outcome.name]
                for name, frame in square.contrasts(values).items():
                    found[way, outcome.name, name] = float(np.nanmean(frame[at].to_numpy()))
        return found

    generator = np.random.default_rng(0)
    drawn = [
        contrasts(np.bincount(generator.integers(0, documents, documents), minlength=documents))
        for _ in trange(REPLICATES, desc="drawing documents")
    ]
    rows = []
    for key, mean in contrasts(once).items():
        ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        low, high = np.nanquantile([each[key] for each in drawn], ends)
        way, outcome, contrast = key
        rows.append((way, outcome, contrast, len(places[way, outcome]), mean, low, high, documents))
    columns = ["way", "outcome", "contrast", "places", "mean", "low", "high", "documents"]
    return pd.DataFrame(rows, columns=columns)


def noise_in_words(found: pd.DataFrame, seed: int) -> list[str]:
    """The effects of one seed, each with its interval over held-out documents.

    Args:
        found: what `document_noise` gives.
        seed: whose SAEs those are.
    """
    said = [
        "Noise of the text, which intervals over seeds do not hold: the SAEs of seed "
        f"{seed}, 95% over {found['documents'].iloc[0]} documents drawn anew (draws in "
        "which a loss is not positive are left out, which narrows its intervals):"
    ]
    for (outcome, way), rows in found.groupby(["outcome", "way"], sort=False):
        known = {
            r.contrast: Interval(r.mean, r.low, r.high, r.documents) for r in rows.itertuples()
        }
        shown = ", ".join(
            f"{words} {known[side].percent()}{'' if known[side].excludes_zero else ' (holds 0)'}"
            for side, words in SIDES.items()
        )
        said.append(f"  {outcome}, {way}: {shown}.")
    return said
