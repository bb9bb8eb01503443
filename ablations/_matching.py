"""Which latents do several architectures and seeds find: decoder directions that match.

For SAEs A and B with live latents (those that fired on the evaluation set), the best match of
latent i of A is j(i) = argmax_j cos(d_i, d_j) over the live latents j of B. It is a match if its
cosine is above 0.7, and a mutual one if i is in turn the best of A for j(i): of near-copies in A
only one then counts. Pairs are of different seeds, so that no common start helps.

Shares hang on L0, which is why arms are compared at several, and on how far training has led from
the start. Beside them stand what chance gives, random directions, and what no training gives: the
centred activations of as many random tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_bench.ablation import Finished

AT = (16, 32, 64)
"""Of each architecture and seed, the arms whose L0 is nearest to these (by ratio) are compared."""
BOUND = 0.7
BATCH = 128
"""Random tokens are drawn in batches of this size."""
EVERY, RANDOM, TOKENS = "every other", "random", "tokens"
"""Instead of another architecture: all arms of other seeds at once, and the two baselines."""


class Match(NamedTuple):
    """Of each latent: cosine of its best match, and whether it is mutual."""

    cosine: Float[Tensor, " latents"]
    mutual: Bool[Tensor, " latents"]


def nearest(table: pd.DataFrame, l0: float) -> pd.DataFrame:
    """The arms of full budget whose L0 is nearest, one an architecture and seed."""
    known = table[table["l0"] > 0]
    known = known[known["train_tokens"] == known["train_tokens"].max()].reset_index(drop=True)
    miss = np.log(known["l0"] / l0).abs()
    return known.loc[miss.groupby([known["architecture"], known["seed"]]).idxmin()]


def best_matches(a: Float[Tensor, "latents_a d_in"], b: Float[Tensor, "latents_b d_in"]) -> Match:
    """The best match of each row of `a` among the rows of `b`."""
    unit_a, unit_b = (torch.nn.functional.normalize(each, dim=1) for each in (a, b))
    cosines = unit_a @ unit_b.T
    best, index = cosines.max(1)
    return Match(best, cosines.argmax(0)[index] == torch.arange(len(a)))


class Live(NamedTuple):
    """The latents of an arm that fired: what is known of the arm, their decoder rows, and how often
    they fire."""

    known: Mapping[str, Any]
    directions: Float[Tensor, "latents d_in"]
    frequency: Float[np.ndarray, " latents"]


@torch.no_grad()
def matches(finished: Finished) -> pd.DataFrame:
    """One row an ordered pair of arms of different seeds, for each of `AT`: at, arm, architecture,
    seed, l0, latents (live ones), those of the other as to_arm, to_architecture, to_seed, to_l0;
    mean (cosine), above_0.7, mutual_0.7 (shares of the latents), by_firings (mutual, each latent
    weighted by its frequency). `to_architecture` is `EVERY` for latents that match in all arms of
    other seeds, `RANDOM` and `TOKENS` for the baselines."""
    frequencies = pd.read_parquet(finished.folder / "frequencies.parquet").set_index("arm")
    tokens, generator = _centred(finished), torch.Generator().manual_seed(0)
    found = []
    for l0 in AT:
        arms = []
        for row in nearest(finished.table, l0).to_dict("records"):
            p = np.asarray(frequencies.loc[row["arm"], "frequency"])
            rows = finished.sae(row["arm"]).W_dec.cpu()[torch.from_numpy(p > 0)]
            known = {key: row[key] for key in ("arm", "architecture", "seed", "l0")}
            arms.append(Live(known, rows, p[p > 0]))
        for arm in arms:
            chance = torch.randn(arm.directions.shape, generator=generator)
            given = {"at": l0, **arm.known, "latents": len(arm.directions)}
            pairs = [*_beside(arm, arms), *_baselines(arm, {RANDOM: chance, TOKENS: tokens})]
            found += [given | to | _shares(match, arm.frequency) for to, match in pairs]
    return pd.DataFrame(found)


def _centred(finished: Finished) -> Float[Tensor, "tokens d_in"]:
    """Activations less their mean, of about as many random tokens as there are latents."""
    some = islice(finished.cache.batches(BATCH, 0), -(-finished.preset.d_sae // BATCH))
    x = torch.cat([each.float().cpu() for each in some])
    return x - x.mean(0)


def _beside(arm: Live, arms: Iterable[Live]) -> Iterator[tuple[dict[str, Any], Match]]:
    """The arm beside each of other seeds, and beside all of them at once."""
    found = []
    for other in arms:
        if other.known["seed"] != arm.known["seed"]:
            found.append(best_matches(arm.directions, other.directions))
            yield {f"to_{key}": value for key, value in other.known.items()}, found[-1]
    if found:
        cosines, mutual = (torch.stack(each) for each in zip(*found, strict=True))
        yield {"to_architecture": EVERY}, Match(cosines.amin(0), mutual.all(0))


def _baselines(
    arm: Live, directions: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, Any], Match]]:
    """The arm beside as many directions of each kind."""
    for name, rows in directions.items():
        match = best_matches(arm.directions, rows[: len(arm.directions)])
        yield {"to_architecture": name}, match


def _shares(match: Match, p: Float[np.ndarray, " latents"]) -> dict[str, float]:
    above = (match.cosine > BOUND).numpy()
    hit = above & match.mutual.numpy()
    return {
        "mean": match.cosine.double().mean().item(),
        "above_0.7": float(above.mean()),
        "mutual_0.7": float(hit.mean()),
        "by_firings": float((p * hit).sum() / p.sum()),
    }


def common(found: pd.DataFrame) -> pd.DataFrame:
    """Share of latents of one architecture (of) that another, or itself at another seed, has (to),
    mutual best matches with a cosine above `BOUND`, over ordered pairs of arms: columns near (one
    of `AT`), of, to, l0 (mean of the arms of the one), mean, least, most, pairs.

    Args:
        found: what `matches` gives.
    """
    by = found.groupby(["at", "architecture", "to_architecture"], sort=False)
    share = by["mutual_0.7"]
    sums = {"l0": by["l0"].mean(), "mean": share.mean()}
    sums |= {"least": share.min(), "most": share.max(), "pairs": share.size()}
    return pd.DataFrame(sums).rename_axis(["near", "of", "to"]).reset_index()


def shares(found: pd.DataFrame, at: float) -> pd.DataFrame:
    """The means of `common` near one L0: a row for each of, a column for each to.

    Args:
        found: what `matches` gives.
        at: one of `AT`.
    """
    near = common(found[found["at"] == at])
    return near.pivot_table(index="of", columns="to", values="mean", sort=False)
