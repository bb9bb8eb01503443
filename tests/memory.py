"""Peak memory of training a group, in a process of its own: `python -m tests.memory ARCHITECTURE`.

Prints, as JSON, bytes: the parameters of all arms, one array of batch x d_sae, and the peak above
what the process held before the arms were made.
"""

import json
import sys
from pathlib import Path

import psutil
import torch

from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.recipe import Recipe
from sae_bench.registry import architecture
from sae_bench.train import train

D_IN, D_SAE, BATCH, ARMS = 256, 4096, 512, 6


def peak() -> int:
    """Bytes of resident memory, the most so far. (`ru_maxrss` would count the parent's, too.)"""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(name: str) -> None:
    """Trains the group for some steps."""
    x = torch.randn(4 * BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    cache = ActivationCache.from_tensor(x)
    cls = architecture(name)
    recipe = Recipe(tokens=8 * BATCH, batch_size=BATCH)
    train(
        [Arm(cls, 128, recipe)], cache, device="cpu"
    )  # libraries and compiled loops are there now
    before = psutil.Process().memory_info().rss
    assert peak() - before < 2**25, "something larger than the measured group came before it"
    found = train([Arm(cls, D_SAE, recipe, seed) for seed in range(ARMS)], cache, device="cpu")
    assert not any(trained.reason for trained in found)
    parameters = sum(4 * p.numel() for each in found if each.sae for p in each.sae.parameters())
    numbers = {"parameters": parameters, "array": 4 * BATCH * D_SAE, "peak": peak() - before}
    print(json.dumps(numbers))


if __name__ == "__main__":
    main(sys.argv[1])
