"""The largest pre-activations, of each token or of a batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.sparse import Deferred, Sparse
from sae_bench.support import first_largest

SAMPLE = 32
"""Tokens whose pre-activations say where to look for the largest of a batch."""


def largest_of_each(pre: Float[Tensor, "batch d_sae"], k: int) -> Float[Tensor, "batch d_sae"]:
    """ReLU of the k largest of each row, 0 elsewhere."""
    if isinstance(pre, Deferred):
        support = pre.plain.largest(k)
        return Sparse(support, pre.at(support).relu())
    values, index = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


def largest_of_all(pre: Float[Tensor, "batch d_sae"], m: int) -> Float[Tensor, "batch d_sae"]:
    """ReLU of the m largest of the batch, 0 elsewhere."""
    if isinstance(pre, Deferred):
        return _largest_entries(pre, m)
    values, index = pre.relu().flatten().topk(m, sorted=False)
    return torch.zeros_like(pre).flatten().scatter(0, index, values).view_as(pre)


def _largest_entries(pre: Deferred, m: int) -> Sparse:
    """From all entries above a bound that twice as many of the first tokens' pass, or if those are
    too few, from all positive ones."""
    projection = pre.plain
    sample = projection.first(SAMPLE)
    rank = min(2 * m * len(sample) // len(pre), sample.numel())
    bound = sample.flatten().kthvalue(sample.numel() - rank + 1).values.clamp(min=0)
    support = pre.above(bound)
    if len(support) < m and bound > 0:
        support = pre.above(0.0)
    values = pre.at(support).detach()
    if len(support) > m:
        support, chosen = support.narrowed(first_largest(values, m))
        projection.keep(support, values[chosen])
    return Sparse(support, pre.at(support))
