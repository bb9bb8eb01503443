"""sparsify: its `SparseCoder`, stepped as its trainer's hook and loop do.

The trainer reads activations from hooks in a language model, so its step is copied here line by
line: unit rows, forward with the batch's total variance (top-k codes, `embedding_bag` decoder,
sparse backward of the encoder), the mask of latents that fired, the read-out of FVU, backward,
gradient projection, torch.optim.Adam (its defaults, an 8-bit or a sign optimiser, would be another
recipe), scheduler, dead counters. On a GPU its forward runs in bfloat16 by its own decorator, and
its decoder is a Triton kernel if Triton is there.
"""

from collections.abc import Callable, Mapping

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from benchmarks.case import Case, Learner


class TopK(Learner):
    """The only architecture that it trains."""

    def __init__(self, case: Case, first: Tensor) -> None:
        config = SparseCoderConfig(num_latents=case.d_sae, k=case.l0)
        d_in, device = first.shape[1], torch.device(case.device)
        self.sae = SparseCoder(d_in, config, device=device, dtype=torch.float32)
        with torch.no_grad():
            W_dec = case.decoder(d_in)
            self.sae.encoder.weight.copy_(W_dec)
            self.sae.W_dec.copy_(W_dec)
            self.sae.b_dec.copy_(first.mean(0))
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=case.lr, betas=case.betas)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.silent = torch.zeros(case.d_sae, dtype=torch.long, device=device)
        self.fired = torch.zeros(case.d_sae, dtype=torch.bool, device=device)
        self.mean_fvu = 0.0

    def step(self, x: Tensor) -> None:  # noqa: D102
        self.sae.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = self.sae(x=x, y=x, dead_mask=None, total_variance=total_variance)
        self.fired[out.latent_indices.flatten()] = True
        self.mean_fvu += float(out.fvu.detach())
        out.fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        with torch.no_grad():
            self.silent += len(x)
            self.silent[self.fired] = 0
            self.fired.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        values, index, pre = self.sae.encode(x)
        f = torch.zeros_like(pre).scatter(-1, index, values)
        return f, self.sae.decode(values, index)


ARMS: Mapping[str, Callable[[Case, Tensor], Learner]] = {"TopK": TopK}
