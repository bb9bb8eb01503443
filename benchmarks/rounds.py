"""Works that take turns, and the table rows that they become."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.case import Case
from benchmarks.meter import seconds
from sae_bench.cache import ActivationCache
from sae_bench.models import LanguageModel
from sae_bench.progress import shown
from sae_bench.sites import Site

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Bench:
    """What the parts share: the quickstart's cache and its model, and how often things are timed.

    Args:
        tokens: of one extraction; lm_tokens: of one evaluation; arms: of one evaluation.
        case: of the step that batches are read for.
    """

    cache: ActivationCache
    lm: LanguageModel
    site: Site
    case: Case
    tokens: int
    lm_tokens: int
    arms: int
    rounds: int

    @property
    def device(self) -> torch.device:
        """Of everything."""
        return torch.device(self.case.device)


def interleaved(works: Mapping[str, Callable[[], object]], bench: Bench, name: str) -> Times:
    """Seconds of each work in each round, after one round that does not count."""
    times: Times = {work: [] for work in works}
    for round_ in shown(range(bench.rounds + 1), name, bench.rounds + 1, "rounds"):
        for work, do in works.items():
            taken = seconds(do, bench.device)
            if round_:
                times[work].append(taken)
    return times


def row(
    part: str, work: str, taken: Sequence[float], reference: str, times: Times, tokens: int
) -> dict[str, Any]:
    """One row of the table."""
    low, ratio, high = np.quantile(np.array(taken) / np.array(times[reference]), [0.25, 0.5, 0.75])
    middle = float(np.median(taken))
    return {
        "part": part,
        "work": work,
        "seconds": middle,
        "per_second": tokens / middle,
        "reference": reference,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "rounds": len(taken),
    }
