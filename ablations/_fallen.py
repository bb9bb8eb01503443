"""How far trained thresholds fell towards 0, where JumpReLU is ReLU: of latents that fire, since
those of dead latents stay where they died."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sae_bench.ablation import Finished
from sae_bench.results import Results

FALLEN = 0.05
"""Window widths below which a threshold has fallen."""


def fallen(finished: Finished) -> pd.DataFrame:
    """One row an arm with thresholds: arm; live_theta_over_eps, their median among latents that
    fired on the held-out side, in window widths; l0_share_fallen, the share of L0 in latents whose
    threshold is below `FALLEN`."""
    table, rates = finished.table, Results.read(finished.folder).frequencies
    known = rates.set_index("arm")["frequency"]
    rows = []
    for arm in table.loc[table["theta_over_eps"].notna(), "arm"]:
        sae, p = finished.sae(arm), np.asarray(known[arm], dtype=float)
        assert sae.threshold is not None
        theta = sae.threshold.detach().double().numpy() / sae.kernel.kernel.bandwidth
        live = p > 0
        median = float(np.median(theta[live])) if live.any() else float("nan")
        rows.append((arm, median, float(p[theta < FALLEN].sum() / max(p.sum(), 1e-12))))
    return pd.DataFrame(rows, columns=["arm", "live_theta_over_eps", "l0_share_fallen"])


def described(table: pd.DataFrame, measured: pd.DataFrame) -> Iterator[str]:
    """Both measures of each part's cells, arm by arm.

    Args:
        table: one row an arm, with its part and cell.
        measured: what `fallen` gives.
    """
    rows = table.merge(measured.drop(columns="part"), on="arm").sort_values("l0", ascending=False)
    if len(rows):
        yield (
            "Thresholds: median theta/eps of the latents that fired, and share of L0 in those "
            f"below {FALLEN:g}, from dense to sparse:"
        )
    for part in dict.fromkeys(table["part"]):
        for cell, arms in rows[rows["part"] == part].groupby("cell"):
            shown = (
                f"L0 {arm.l0:.3g} {arm.live_theta_over_eps:.2f}, {arm.l0_share_fallen:.0%}"
                for arm in arms.itertuples()
            )
            yield f"  {part}, {cell}: {'; '.join(shown)}."
