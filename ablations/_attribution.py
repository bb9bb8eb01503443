"""r_L0 of trained SAEs (`sae_bench.attribution`) against their L0: arXiv 2407.14435, Fig. 16."""

import pandas as pd
from matplotlib.figure import Figure

from sae_bench import bands, plots
from sae_bench.ablation import Finished
from sae_bench.attribution import relative_l0


def attribution(finished: Finished) -> pd.DataFrame:
    """Columns arm, r_l0, r_l0_low, r_l0_high (95%, over documents) and r_l0_tokens (with
    any attribution) on the held-out side; without a language model, none."""
    cache = finished.cache.held_out
    size = finished.preset.data.lm_tokens
    assert cache is not None
    if not size or (lm := cache.language_model()) is None:
        return pd.DataFrame()
    arms = finished.table.loc[finished.table["l0"].notna(), "arm"].drop_duplicates()
    found = relative_l0([finished.sae(arm) for arm in arms], cache, lm, size)
    return pd.DataFrame([{"arm": arm, **row} for arm, row in zip(arms, found, strict=True)])


def against_l0(found: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """r_L0 against L0, a curve an architecture in a band over seeds.

    Args:
        found: what `attribution` gives.
        table: of the run.
    """
    figure = plots.figure(4.6, 2.8)
    (axes,) = figure.axes
    rows = table.merge(found[["arm", "r_l0"]], on="arm")
    lines = plots.looks(list(rows["architecture"].unique()))
    bands.bands(rows, axes, x="l0", y="r_l0", by="architecture", lines=lines)
    axes.set_ylabel("r_L0: effective share of active latents")
    bands.label_ends(axes)
    return figure
