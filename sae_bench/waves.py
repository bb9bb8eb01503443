"""Which arms of a group fit into memory together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sae_bench.arm import Arm


class Need(NamedTuple):
    """Bytes that an arm takes as long as it is trained, and beside those during its own step."""

    lasting: int
    passing: int


def memory_need(arm: Arm, d_in: int) -> Need:
    """Lasting: parameters, two Adam moments, the state of counters and estimator. Passing: the
    gradients, and about ten arrays of batch x d_sae while codes are dense (with sparse codes about
    one). Nothing for an arm that cannot be built: training it says why."""
    try:
        sae = arm.build(d_in)
    except Exception:
        return Need(0, 0)
    parameters, buffers = (
        sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        for tensors in (sae.parameters(), sae.buffers())
    )
    return Need(3 * parameters + buffers, parameters + 10 * arm.recipe.batch_size * arm.d_sae * 4)


def waves(arms: Sequence[Arm], needs: Sequence[Need], budget: int) -> Iterator[list[Arm]]:
    """Splits a group, in order, into waves that fit the budget (at least one arm each): the sum of
    what lasts, and the largest of what passes, since arms take their steps in turn."""
    wave: list[Arm] = []
    used = Need(0, 0)
    for arm, need in zip(arms, needs, strict=True):
        following = Need(used.lasting + need.lasting, max(used.passing, need.passing))
        if wave and sum(following) > budget:
            yield wave
            wave, following = [], need
        wave.append(arm)
        used = following
    if wave:
        yield wave
