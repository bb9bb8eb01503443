"""One architecture a file. Each is a `SparseAutoencoder` with the slots and methods that differ."""

from architectures.gated import GatedSAE
from architectures.jumprelu import JumpReLUSAE
from architectures.relu import ReLUSAE
from architectures.topk import TopKSAE

__all__ = ["GatedSAE", "JumpReLUSAE", "ReLUSAE", "TopKSAE"]
