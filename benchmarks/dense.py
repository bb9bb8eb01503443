"""The plain dense reference: standard formulae, autograd and fused Adam, nothing of ours.

What a careful person writes in an afternoon. The arithmetic is that of our architectures, so losses
agree with ours step by step; a step has all that ours has: gradient projection, unit rows, dead
counters, AuxK where the architecture has it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import Case, Learner


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Sum over d_in, mean over the batch."""
    return (x - x_hat).square().sum(1).mean()


class Dense(Learner):
    """Base: f = activation((x - b_dec) W_enc + b_enc), x_hat = f W_dec + b_dec."""

    def __init__(self, case: Case, first: Tensor) -> None:
        self.case, self.weight = case, case.coefficient
        W_dec = case.decoder(first.shape[1])
        self.W_enc = nn.Parameter(W_dec.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(case.d_sae, device=first.device))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(first.mean(0))
        self.silent = torch.zeros(case.d_sae, dtype=torch.int64, device=first.device)
        groups: list[dict[str, Any]] = [
            {"params": [self.W_enc, self.b_enc, self.W_dec, self.b_dec]},
            *self.more(),
        ]
        self.adam = torch.optim.Adam(groups, lr=case.lr, betas=case.betas, fused=True)

    def more(self) -> list[dict[str, Any]]:
        """Further groups of parameters."""
        return []

    def pre(self, x: Tensor) -> Tensor:
        """Pre-activations."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def codes(self, x: Tensor) -> Tensor:
        """f of a batch."""
        return self.pre(x).relu()

    def decode(self, f: Tensor) -> Tensor:
        """x_hat."""
        return f @ self.W_dec + self.b_dec

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and codes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        f = self.codes(x)
        return f, self.decode(f)

    def step(self, x: Tensor) -> None:  # noqa: D102
        self.adam.zero_grad()
        loss, f = self.loss(x)
        loss.backward()
        with torch.no_grad():
            grad = self.W_dec.grad
            assert grad is not None
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            self.adam.step()
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
            self.silent += len(x)
            self.silent[(f > 0).any(0)] = 0


class Penalised(Dense):
    """Base of those with a coefficient."""

    def coefficient(self) -> float | None:  # noqa: D102
        return self.weight

    def charge(self, coefficient: float) -> None:  # noqa: D102
        self.weight = coefficient


class ReLU(Penalised):
    """L1."""

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        f = self.codes(x)
        return squared_error(x, self.decode(f)) + self.weight * f.sum(1).mean(), f


class TopK(Dense):
    """TopK with AuxK."""

    def select(self, pre: Tensor) -> Tensor:
        """The k largest of each token."""
        values, index = pre.topk(self.case.l0, dim=-1)
        return torch.zeros_like(pre).scatter(-1, index, values.relu())

    def codes(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.select(self.pre(x))

    def errors(self, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss, and x_hat."""
        x_hat = self.decode(f)
        return squared_error(x, x_hat), x_hat

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        pre = self.pre(x)
        f = self.select(pre)
        loss, x_hat = self.errors(x, f)
        dead = self.silent >= self.case.dead_after
        if dead.any():
            k = min(x.shape[1] // 2, int(dead.sum()))
            values, index = pre.masked_fill(~dead, -torch.inf).topk(k, dim=-1)
            aux = torch.zeros_like(pre).scatter(-1, index, values.relu())
            loss = loss + squared_error((x - x_hat).detach(), aux @ self.W_dec) / 32
        return loss, f


class BatchTopK(TopK):
    """The k * batch largest of the batch, with a running threshold for inference."""

    threshold: Tensor | None = None

    def select(self, pre: Tensor) -> Tensor:  # noqa: D102
        values, index = pre.relu().flatten().topk(self.case.l0 * len(pre))
        return torch.zeros_like(pre).flatten().scatter(0, index, values).view_as(pre)

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        loss, f = super().loss(x)
        with torch.no_grad():
            smallest = f[f > 0].min()
            old = smallest if self.threshold is None else self.threshold
            self.threshold = 0.999 * old + 0.001 * smallest
        return loss, f


class Matryoshka(BatchTopK):
    """BatchTopK whose nested prefixes each reconstruct x."""

    def errors(self, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        x_hat: Tensor = self.b_dec
        total, start = x.new_zeros(()), 0
        for end in self.case.prefixes:
            x_hat = x_hat + f[:, start:end] @ self.W_dec[start:end]
            total, start = total + squared_error(x, x_hat), end
        return total, x_hat


class Gated(Penalised):
    """Gate and magnitude, L1 on the rectified gate, auxiliary loss through a frozen decoder."""

    def more(self) -> list[dict[str, Any]]:  # noqa: D102
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))
        self.b_mag = nn.Parameter(torch.zeros_like(self.b_enc))
        return [{"params": [self.r_mag, self.b_mag]}]

    def gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and gate."""
        shared = (x - self.b_dec) @ self.W_enc
        gate = shared + self.b_enc
        return (gate > 0) * (shared * self.r_mag.exp() + self.b_mag).relu(), gate

    def codes(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.gated(x)[0]

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        f, gate = self.gated(x)
        rectified = gate.relu()
        frozen = rectified @ self.W_dec.detach() + self.b_dec.detach()
        sparsity = self.weight * rectified.sum(1).mean()
        return squared_error(x, self.decode(f)) + sparsity + squared_error(x, frozen), f


class Jump(torch.autograd.Function):
    """(pre, theta, bandwidth) -> codes and step, with the Rectangle kernel's pseudo-gradients."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        """pre * 1[pre > theta], 1[pre > theta]."""
        on = (pre > theta).to(pre.dtype)
        ctx.save_for_backward(pre, theta, on)
        ctx.bandwidth = bandwidth
        return pre * on, on

    @staticmethod
    def backward(ctx: Any, g_f: Tensor, g_step: Tensor) -> tuple[Tensor, Tensor, None]:
        """Equations 11 and 12 of arXiv 2407.14435."""
        pre, theta, on = ctx.saved_tensors
        near = ((pre - theta).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return g_f * on, -((theta * g_f + g_step) * near).sum(0), None


class JumpReLU(Penalised):
    """Log thresholds, L0, batch estimate with the Rectangle kernel."""

    def more(self) -> list[dict[str, Any]]:  # noqa: D102
        start = torch.full_like(self.b_enc, self.case.threshold).log()
        self.log_threshold = nn.Parameter(start)
        return [{"params": [self.log_threshold], "lr": self.case.log_lr}]

    def jumped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and step."""
        f, step = Jump.apply(self.pre(x), self.log_threshold.exp(), self.case.bandwidth)
        return f, step

    def codes(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.jumped(x)[0]

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        f, step = self.jumped(x)
        return squared_error(x, self.decode(f)) + self.weight * step.sum(1).mean(), f


ARMS: Mapping[str, Callable[[Case, Tensor], Learner]] = {
    "ReLU": ReLU,
    "TopK": TopK,
    "BatchTopK": BatchTopK,
    "Matryoshka": Matryoshka,
    "Gated": Gated,
    "JumpReLU": JumpReLU,
}
