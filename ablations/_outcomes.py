"""What the factorial and its kin compare, and where."""

import numpy as np
import pandas as pd

from sae_bench.contrasts import Outcome

PLACES = (16, 32, 64, 128)
"""Values of L0 at which cells are compared."""
AT = tuple(float(x) for x in np.log(PLACES))
MATCHED = (0.03, 0.06, 0.12, 0.2)
"""Values of delta LM loss, nats, at which firing frequencies are compared."""
LOSSES = tuple(float(x) for x in np.log(MATCHED))
FLOOR = 0.01
"""Delta LM loss, nats, up to which it is the text's noise, and has no logarithm worth its name."""

FVU = Outcome("log_fvu", "log_l0", "FVU at matched L0", AT)
LOSS = Outcome("log_delta_lm_loss", "log_l0", "delta LM loss at matched L0", AT[:3])
SHARES = {
    "l0_share_above_10pct": "share of L0 above 10%",
    "above_10pct": "latents above 10%",
    "above_1pct": "latents above 1%",
}
FREQUENT = tuple(
    Outcome(y, x, f"{name} at matched {axis}", at)
    for y, name in SHARES.items()
    for x, axis, at in (("log_l0", "L0", AT), ("log_delta_lm_loss", "delta LM loss", LOSSES))
)


OTHER_BOUNDS = tuple(
    Outcome(y, "log_l0", f"{name} at matched L0", at)
    for y, name, at in (
        ("l0_share_above_5pct", "share of L0 above 5%", AT),
        ("l0_share_above_20pct", "share of L0 above 20%", AT),
        ("l0_share_above_10_means", "share of L0 above 10 times the mean", AT[:2]),
    )
)
"""Ten times the mean frequency is 14% at L0 16, 28% at 32 and, at this width, beyond all at 128."""
OUTCOMES = (FVU, LOSS, *FREQUENT)
DECISIVE = (FVU, LOSS, FREQUENT[0])


def with_shares(table: pd.DataFrame, frequencies: pd.DataFrame) -> pd.DataFrame:
    """The rows with the shares of L0 that `OTHER_BOUNDS` name, from all firing frequencies."""
    names = [outcome.y for outcome in OTHER_BOUNDS]
    rows = []
    for _, row in frequencies.iterrows():
        p = np.asarray(row["frequency"], dtype=float)
        total = max(float(p.sum()), np.finfo(float).tiny)
        bounds = 0.05, 0.2, 10 * p.mean()
        shares = (float(p[p > bound].sum()) / total for bound in bounds)
        rows.append((row["arm"], row["eval_set"], *shares))
    found = pd.DataFrame(rows, columns=["arm", "eval_set", *names])
    found = found.astype(dict.fromkeys(names, float))
    return table.merge(found, on=["arm", "eval_set"], how="left")
