"""Which latents do several architectures and seeds find: decoder directions that match.

For SAEs A and B with live latents (those that fired on the evaluation set), c_i = max_j cos(d_i,
d_j) over the live latents j of B: how well B has latent i of A. A share of c_i above 0.7 or 0.9 is
compared with that of random directions of the same number, which says what chance gives.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.ablation import Finished

AT = 32
"""Of each architecture and seed, the arm whose L0 is nearest to this (by ratio) is compared."""
BOUNDS = (0.7, 0.9)


def nearest(table: pd.DataFrame, l0: float) -> pd.DataFrame:
    """The arms of full budget whose L0 is nearest, one an architecture and seed."""
    known = table[table["l0"] > 0]
    known = known[known["train_tokens"] == known["train_tokens"].max()]
    miss = np.log(known["l0"] / l0).abs()
    return known.loc[miss.groupby([known["architecture"], known["seed"]]).idxmin()]


def best_cosines(
    a: Float[Tensor, "latents_a d_in"], b: Float[Tensor, "latents_b d_in"]
) -> Float[Tensor, " latents_a"]:
    """The largest cosine of each row of `a` with any row of `b`."""
    unit_a, unit_b = (torch.nn.functional.normalize(each, dim=1) for each in (a, b))
    return (unit_a @ unit_b.T).amax(1)


@torch.no_grad()
def matches(finished: Finished) -> pd.DataFrame:
    """One row an ordered pair of arms: arm, architecture, seed, to_arm, to_architecture, to_seed,
    latents (live ones of the first), mean of c_i, above_0.7, above_0.9; `to_arm` is "random" for
    as many random directions as the first has live latents."""
    rows = nearest(finished.table, AT).to_dict("records")
    frequencies = pd.read_parquet(finished.folder / "frequencies.parquet").set_index("arm")
    decoders: Mapping[str, Tensor] = {
        row["arm"]: finished.sae(row["arm"]).W_dec[
            torch.from_numpy(np.asarray(frequencies.loc[row["arm"], "frequency"]) > 0)
        ]
        for row in rows
    }
    generator = torch.Generator().manual_seed(0)
    found = []
    for row in rows:
        mine = decoders[row["arm"]]
        chance = torch.randn(mine.shape, generator=generator)
        others = [(other["arm"], other["architecture"], other["seed"]) for other in rows]
        for to_arm, to_architecture, to_seed in [*others, ("random", "random", -1)]:
            if to_arm == row["arm"]:
                continue
            c = best_cosines(mine, chance if to_arm == "random" else decoders[to_arm])
            found.append(
                {"arm": row["arm"], "architecture": row["architecture"], "seed": row["seed"]}
                | {"to_arm": to_arm, "to_architecture": to_architecture, "to_seed": to_seed}
                | {"latents": len(c), "mean": c.mean().item()}
                | {f"above_{bound}": (c > bound).double().mean().item() for bound in BOUNDS}
            )
    return pd.DataFrame(found)


def shares(found: pd.DataFrame, bound: float = BOUNDS[0]) -> pd.DataFrame:
    """Share of latents of an architecture (rows) that another, or itself at another seed, has
    (columns): means over pairs of arms with different seeds, so that no common start helps."""
    apart = found[found["seed"] != found["to_seed"]]
    return apart.pivot_table(
        index="architecture", columns="to_architecture", values=f"above_{bound}", sort=False
    )
