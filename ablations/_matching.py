"""Which latents do several architectures and seeds find: decoder directions that match.

For SAEs A and B with live latents (those that fired on the evaluation set), the best match of
latent i of A is j(i) = argmax_j cos(d_i, d_j) over the live latents j of B. It is a match if its
cosine is above 0.7, and a mutual one if i is in turn the best of A for j(i): of near-copies in A
only one then counts. Pairs are of different seeds, so that no common start helps.

Shares hang on L0, which is why arms are compared at several, and on how far training has led from
the start. Beside them stand what chance gives, random directions, and what no training gives: the
centred activations of as many random tokens.
"""

from itertools import islice
from typing import NamedTuple

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


@torch.no_grad()
def matches(finished: Finished) -> pd.DataFrame:
    """One row an ordered pair of arms of different seeds, for each of `AT`: at, arm, architecture,
    seed, l0, latents (live ones), those of the other as to_arm, to_architecture, to_seed, to_l0;
    mean (cosine), above_0.7, mutual_0.7 (shares of the latents), by_firings (mutual, each latent
    weighted by its frequency). `to_architecture` is `EVERY` for latents that match in all arms of
    other seeds, `RANDOM` and `TOKENS` for the baselines."""
    frequencies = pd.read_parquet(finished.folder / "frequencies.parquet").set_index("arm")
    some = islice(finished.cache.batches(BATCH, 0), -(-finished.preset.d_sae // BATCH))
    x = torch.cat([each.float().cpu() for each in some])
    tokens = x - x.mean(0)
    generator = torch.Generator().manual_seed(0)
    found = []
    for l0 in AT:
        rows = nearest(finished.table, l0).to_dict("records")
        rates = {row["arm"]: np.asarray(frequencies.loc[row["arm"], "frequency"]) for row in rows}
        decoders = {
            arm: finished.sae(arm).W_dec.cpu()[torch.from_numpy(p > 0)] for arm, p in rates.items()
        }
        for row in rows:
            mine, p = decoders[row["arm"]], rates[row["arm"]][rates[row["arm"]] > 0]
            known = {"at": l0} | {key: row[key] for key in ("arm", "architecture", "seed", "l0")}
            known |= {"latents": len(mine)}
            of_others = []
            for other in rows:
                if other["seed"] != row["seed"]:
                    match = best_matches(mine, decoders[other["arm"]])
                    to = {f"to_{key}": other[key] for key in ("arm", "architecture", "seed", "l0")}
                    found.append(known | to | _shares(match, p))
                    of_others.append(match)
            chance = torch.randn(mine.shape, generator=generator)
            joint = {RANDOM: best_matches(mine, chance)}
            joint |= {TOKENS: best_matches(mine, tokens[: len(mine)])}
            if of_others:
                cosines, mutual = (torch.stack(each) for each in zip(*of_others, strict=True))
                joint |= {EVERY: Match(cosines.amin(0), mutual.all(0))}
            found += [
                known | {"to_architecture": name} | _shares(match, p)
                for name, match in joint.items()
            ]
    return pd.DataFrame(found)


def _shares(match: Match, p: Float[np.ndarray, " latents"]) -> dict[str, float]:
    above = (match.cosine > BOUND).numpy()
    hit = above & match.mutual.numpy()
    return {
        "mean": match.cosine.double().mean().item(),
        "above_0.7": float(above.mean()),
        "mutual_0.7": float(hit.mean()),
        "by_firings": float((p * hit).sum() / p.sum()),
    }


def shares(found: pd.DataFrame, at: float, column: str = "mutual_0.7") -> pd.DataFrame:
    """Share of latents of an architecture (rows) that another, or itself at another seed, has
    (columns): means over pairs of arms."""
    return found[found["at"] == at].pivot_table(
        index="architecture", columns="to_architecture", values=column, sort=False
    )
