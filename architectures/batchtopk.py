"""BatchTopK SAE (Bussmann, Leask and Nanda 2024, arXiv 2412.06410)."""

from architectures.topk import TopKSAE
from sae_bench.activations import Activation, BatchTopK


class BatchTopKSAE(TopKSAE):
    """TopK with its k shared out over the batch: tokens may differ in L0. AuxK as in TopK.

    In training f keeps the k * batch largest ReLU(pre) of the batch; in evaluation
    f = pre 1[pre > theta] with one fixed `threshold` for all latents, as a JumpReLU SAE.
    """

    activation: Activation = BatchTopK(64)
