"""Reconstruction, sparsity and firing frequencies of SAEs on cached activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.cache import ActivationCache
from sae_bench.devices import give_memory_back
from sae_bench.progress import shown
from sae_bench.sae import SparseAutoencoder
from sae_bench.stats import bootstrap_ratio, sums_by


@dataclass(frozen=True)
class Moments:
    """First and second moments of an evaluation set, in float64.

    mean: of the raw rows; deviation: squared distance of each row from the mean, in stored order.
    """

    mean: Float[np.ndarray, " d_in"]
    deviation: Float[np.ndarray, " rows"]

    @classmethod
    def of(cls, cache: ActivationCache, chunk: int) -> "Moments":
        """Two passes over the cache."""
        total = sum(x.double().sum(0) for x in cache.chunks(chunk))
        assert isinstance(total, Tensor)
        mean = total / cache.rows
        parts = [(x.double() - mean).square().sum(1).cpu().numpy() for x in cache.chunks(chunk)]
        return cls(mean.cpu().numpy(), np.concatenate(parts))


class Meter:
    """Accumulates the measurements of one SAE over an evaluation set of `rows` tokens.

    What stays is made beforehand: small arrays made among large temporaries leave gaps that no
    later temporary fits into, tens of MB for each SAE and chunk.
    """

    def __init__(self, sae: SparseAutoencoder, rows: int) -> None:
        self._sae = sae
        self._fired: Int[Tensor, " d_sae"] = torch.zeros(sae.d_sae, dtype=torch.int64)
        self._error, self._l0 = np.zeros(rows), np.zeros(rows, dtype=np.int64)
        self._seen = 0
        self._norm = self._inner = 0.0

    def add(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Measures one chunk of raw rows, wherever and in whatever precision the SAE lives."""
        f = self._sae.encode(x.to(self._sae.W_dec))
        x = x.double()
        x_hat = self._sae.decode(f).to(x)
        on = f > 0
        here = slice(self._seen, self._seen + len(x))
        self._fired += on.sum(0).cpu()
        self._l0[here] = on.sum(1).cpu().numpy()
        self._error[here] = (x - x_hat).square().sum(1).cpu().numpy()
        self._seen += len(x)
        self._norm += x_hat.square().sum().item()
        self._inner += (x_hat * x).sum().item()

    def result(self, moments: Moments, documents: Int[np.ndarray, " rows"]) -> dict[str, Any]:
        """The metrics, by column name; see `measure`."""
        error, l0, n = self._error, self._l0, self._seen
        frequency = self._fired.numpy() / n
        low, high = bootstrap_ratio(*sums_by(documents, error, moments.deviation))
        mean_l0 = float(l0.mean())
        frequent = float(frequency[frequency > 0.1].sum())
        return {
            "tokens": n,
            "documents": len(np.unique(documents)),
            "l0": mean_l0,
            "l0_std": float(l0.std()),
            "fvu": float(error.sum() / moments.deviation.sum()),
            "fvu_low": low,
            "fvu_high": high,
            "gamma": self._norm / self._inner if self._inner else float("nan"),
            "dead": float((frequency == 0).mean()),
            "above_1pct": float((frequency > 0.01).mean()),
            "above_10pct": float((frequency > 0.1).mean()),
            "l0_share_above_10pct": frequent / mean_l0 if mean_l0 else float("nan"),
            **_collapse(self._sae),
            "frequency": frequency.astype(np.float32),
        }


NOTHING = 0.01
"""Share of the window's width below which a threshold counts as 0."""


def _collapse(sae: SparseAutoencoder) -> dict[str, float]:
    """How far trained thresholds have fallen towards 0, where they have an effect no more."""
    if not sae.activation.trains_threshold or sae.threshold is None:
        return {"theta_over_eps": float("nan"), "theta_at_0": float("nan")}
    relative = (sae.threshold / sae.kernel.kernel.bandwidth).double()
    return {
        "theta_over_eps": float(relative.median()),
        "theta_at_0": float((relative < NOTHING).double().mean()),
    }


@torch.no_grad()
def measure(
    saes: Sequence[SparseAutoencoder], cache: ActivationCache, chunk: int = 2048
) -> list[dict[str, Any]]:
    """Reconstruction metrics of SAEs that take raw activations, in the mode they are in; each chunk
    is read once for all.

    tokens, documents: rows measured (special positions are not in the cache) and the number of
    documents they come from. l0: mean count of f > 0, and
    l0_std its standard deviation over tokens. fvu: sum of squared errors / sum of squared
    deviations from the evaluation set's mean (two passes; predicting that mean gives exactly 1),
    with a 95% interval from a bootstrap over documents (fvu_low, fvu_high; over rows, for a tensor
    whose documents are unknown). gamma: relative reconstruction bias
    E||x_hat||^2 / E[x_hat . x] (arXiv 2404.16014). dead: share of latents that never fired in
    `tokens` tokens. above_1pct, above_10pct: share of latents that fire on more than that share of
    tokens. l0_share_above_10pct: share of L0 carried by the latter. theta_over_eps: median over
    latents, dead ones included, of a trained threshold in units of the window's width, theta_at_0:
    share of latents where that is below 0.01 (NaN without trained thresholds). frequency: (d_sae,)
    share of tokens on which each latent fires.
    """
    give_memory_back()
    moments = Moments.of(cache, chunk)
    meters = [Meter(sae, cache.rows) for sae in saes]
    chunks = -(-cache.rows // chunk)
    for x in shown(cache.chunks(chunk), f"measuring {len(saes)} arms", chunks, "chunks"):
        for meter in meters:
            meter.add(x)
    documents = documents_of(cache)
    return [meter.result(moments, documents) for meter in meters]


def documents_of(cache: ActivationCache) -> Int[np.ndarray, " rows"]:
    """The document of each row; for a tensor, where that is unknown, each row is one of its own."""
    return np.arange(cache.rows) if cache.site is None else cache.columns().document
