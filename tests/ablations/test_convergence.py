"""FVU against tokens: what is drawn of several seeds."""

import numpy as np
import pandas as pd
import pytest

from ablations._convergence import converging


def test_convergence_draws_the_mean_and_the_span_of_seeds() -> None:
    """0.1, 0.2 and 0.6 from seed to seed, a tenth of it near L0 128; a step that one seed has not
    logged is left out."""
    rows = [
        {"arm": f"{seed}", "cell": "ReLU + L1", "seed": seed, "near": near, "tokens": tokens}
        | {"l0": 30.0, "fvu": fvu if near == 32 else fvu / 10}
        for seed, fvu in ((3, 0.2), (0, 0.1), (1, 0.6))
        for near in (32, 128)
        for tokens in (512, 1024, 1536)
    ]
    panels = converging(pd.DataFrame(rows[:-1]), ["ReLU + L1", "Gated"]).axes
    for axes, scale, steps in zip(panels, (1, 0.1), ([512, 1024, 1536], [512, 1024]), strict=True):
        (line,) = axes.lines
        assert line.get_label() == "ReLU + L1 30"
        assert np.asarray(line.get_xdata()) * 1000 == pytest.approx(steps)
        assert line.get_ydata() == pytest.approx([0.3 * scale] * len(steps))
        ends = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((0.1 * scale, 0.6 * scale))
        assert axes.get_ylim()[0] < ends.min()
        assert axes.get_ylim()[1] > ends.max()
