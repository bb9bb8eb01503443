"""One architecture a file. Each is a `SparseAutoencoder` with the slots and methods that differ."""

from architectures.batchtopk import BatchTopKSAE
from architectures.gated import GatedSAE
from architectures.gated_ri_l1 import GatedRIL1SAE
from architectures.jumprelu import JumpReLUSAE
from architectures.matryoshka import MatryoshkaSAE
from architectures.relu import ReLUSAE
from architectures.topk import TopKSAE

__all__ = [
    "BatchTopKSAE",
    "GatedRIL1SAE",
    "GatedSAE",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "ReLUSAE",
    "TopKSAE",
]
