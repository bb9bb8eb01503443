"""The sparse path gives the numbers of the dense one: losses, every gradient, every buffer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import JumpReLUSAE, ReLUSAE, TopKSAE
from architectures.topk import AuxK
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.estimators import BatchKDE, Estimator, WindowKDE
from sae_bench.kernels import Gaussian, Rectangle
from sae_bench.loss import Loss
from sae_bench.penalties import L0, L1, Penalty
from sae_bench.projection import NeedsDense
from sae_bench.sae import SparseAutoencoder
from sae_bench.side_by_side import SideBySide
from sae_bench.sparse import Deferred, Sparse
from tests.either import either
from tests.sae_bench.test_combinations import ACTIVATIONS, PENALTIES, estimators, objects
from tests.small import ARCHITECTURES, D_SAE, small_batch, small_sae

__all__ = ["either"]

pytestmark = pytest.mark.usefixtures("either")


@dataclass
class Step:
    """What a step leaves before its update: all that may differ between the two paths."""

    loss: Loss
    numbers: dict[str, Tensor]


def step(sae: SparseAutoencoder, x: Tensor, scale: float = 0.7) -> Step:
    """As the trainer does it, with the SAE's buffers put back afterwards."""
    before = {name: buffer.clone() for name, buffer in sae.named_buffers()}
    sae.zero_grad(set_to_none=True)
    with sae.thresholds_left_to_estimator():
        loss = sae.loss(x, scale)
    if sae.needs_samples:
        loss.latents.f.retain_grad()
    loss.total.backward()
    sae.estimate_(loss, scale)
    sae.observe(loss.latents)
    numbers = {f"loss.{name}": term.detach() for name, term in loss.terms.items()}
    numbers |= {f"grad.{name}": p.grad for name, p in sae.named_parameters() if p.grad is not None}
    numbers |= {f"buffer.{name}": buffer.clone() for name, buffer in sae.named_buffers()}
    numbers["reconstruction"] = loss.reconstruction.detach()
    for name, buffer in sae.named_buffers():
        buffer.copy_(before[name])
    return Step(loss, numbers)


def check_paths_agree(sae: SparseAutoencoder, x: Tensor, tolerance: float = 1e-11) -> None:
    """For an SAE in float64: to round-off."""
    dense = step(sae, x)
    with sae.sparsely(1.0):
        thin = step(sae, x)
    assert isinstance(thin.loss.latents.f, Sparse)
    assert thin.numbers.keys() == dense.numbers.keys()
    for name, expected in dense.numbers.items():
        torch.testing.assert_close(
            thin.numbers[name],
            expected,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def doubles(cls: type[SparseAutoencoder], **slots: Any) -> tuple[SparseAutoencoder, Tensor]:
    sae = small_sae(cls, **slots).double()
    sae.silent_tokens[: D_SAE // 2] = 20_000_000  # some are dead: AuxK has work to do
    return sae, small_batch().double()


@pytest.mark.parametrize("cls", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_every_architecture(cls: type[SparseAutoencoder]) -> None:
    check_paths_agree(*doubles(cls))


@pytest.mark.parametrize("to_input", [False, True], ids=["theta", "input"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.label)
def test_every_combination_of_slots(activation: Any, penalty: Penalty, to_input: bool) -> None:
    for kernel in estimators(to_input):
        if not objects(activation, penalty, kernel):
            slots = {"activation": activation, "penalty": penalty, "kernel": kernel}
            check_paths_agree(*doubles(SparseAutoencoder, **slots))


def test_a_kernel_without_an_end_loses_next_to_nothing() -> None:
    """2e-9 of its mass lies beyond its reach, of which the tolerance is ten times."""
    slots = {"activation": JumpReLU(LogThreshold(0.4)), "kernel": Gaussian(0.05)}
    check_paths_agree(*doubles(JumpReLUSAE, **slots), tolerance=2e-8)


@pytest.mark.parametrize("slots", [1, 3, 100])
@pytest.mark.parametrize("to_input", [False, True])
def test_an_estimator_that_takes_few_samples_gets_the_first(slots: int, to_input: bool) -> None:
    """In both paths the gradient is the one that it finds among all samples."""
    window = WindowKDE(Rectangle(0.5), steps=2, slots=slots, to_input=to_input)
    few, x = doubles(JumpReLUSAE, kernel=window)
    check_paths_agree(few, x)
    everything, _ = doubles(JumpReLUSAE, kernel=SideBySide((window,)))
    expected = step(everything, x).numbers["grad.log_threshold"]
    torch.testing.assert_close(step(few, x).numbers["grad.log_threshold"], expected)
    with few.sparsely(1.0):
        fewer = step(few, x).loss.latents.f
    with everything.sparsely(1.0):
        more = step(everything, x).loss.latents.f
    assert isinstance(fewer, Sparse)
    assert isinstance(more, Sparse)
    assert (len(fewer.support) < len(more.support)) is (slots < 100 and not to_input)


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
@pytest.mark.parametrize("rows", [1, 5, 1024])
def test_batches_in_pieces(monkeypatch: pytest.MonkeyPatch, batch: int, rows: int) -> None:
    monkeypatch.setattr("sae_bench.projection.ROWS", rows)
    for cls in ARCHITECTURES.values():
        check_paths_agree(doubles(cls)[0], small_batch(batch=batch).double())


def test_activations_that_want_a_gradient() -> None:
    sae, x = doubles(ReLUSAE)
    (dense,) = torch.autograd.grad(sae.loss(x.requires_grad_()).total, x)
    with sae.sparsely(1.0):
        (thin,) = torch.autograd.grad(sae.loss(x).total, x)
    torch.testing.assert_close(thin, dense)


def test_nothing_of_the_size_of_all_codes_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch in pieces, at most one piece's pre-activations: 5 rows of 33."""
    monkeypatch.setattr("sae_bench.projection.ROWS", 5)
    sae, x = doubles(JumpReLUSAE)[0], small_batch(batch=33).double()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                if isinstance(each, Tensor):
                    is_csr = each.layout == torch.sparse_csr
                    largest = max(largest, each._nnz() if is_csr else each.numel())
            return out

    with sae.sparsely(1.0), Watch():
        sae.loss(x).total.backward()
    assert 0 < largest < 33 * D_SAE


def test_too_many_latents_are_a_reason_that_passes() -> None:
    sae, x = doubles(ReLUSAE)
    with sae.sparsely(0.1), pytest.raises(NeedsDense) as caught:
        sae.loss(x)
    assert not caught.value.lasting


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_get_lost(bad: float) -> None:
    for cls in (ReLUSAE, JumpReLUSAE):
        sae, x = doubles(cls)
        with torch.no_grad():
            sae.W_enc[0, 0] = bad
        with sae.sparsely(1.0):
            assert not sae.loss(x).total.isfinite()


# -- code that knows nothing of it ----------------------------------------------------------------


def pair() -> tuple[Sparse, Tensor]:
    """Codes, and the same as an ordinary tensor; each latent's and each token's number differs."""
    sae, x = doubles(ReLUSAE)
    with torch.no_grad(), sae.sparsely(1.0):
        codes = sae.latents(x).f
    assert isinstance(codes, Sparse)
    return codes, codes.dense()


V = torch.linspace(0.5, 2, D_SAE, dtype=torch.float64)
W = torch.randn(D_SAE, 3, generator=torch.Generator().manual_seed(0)).double()
ROW = torch.linspace(1, 3, 32, dtype=torch.float64)[:, None]

SUPPORTED: list[Callable[[Tensor], Tensor]] = [
    lambda f: f.sum(),
    lambda f: f.sum(0),
    lambda f: f.sum(-1),
    lambda f: f.sum(dim=1, keepdim=True),
    lambda f: torch.sum(f, 0),
    lambda f: f.mean(),
    lambda f: f.mean(0),
    lambda f: f.mean(dim=(1,)),
    lambda f: (f > 0).sum(),
    lambda f: (f > 0).sum(1),
    lambda f: (f > 0).any(0),
    lambda f: (f > 0.3).any(),
    lambda f: (f > 0).double().mean(0),
    lambda f: f.count_nonzero(),
    lambda f: f.square().sum(-1).sqrt(),
    lambda f: f**2,
    lambda f: f * f,
    lambda f: 2 * f,
    lambda f: f / V,
    lambda f: V * f,
    lambda f: f * V[None],
    lambda f: f * ROW,
    lambda f: f + 1,
    lambda f: 1 - f,
    lambda f: (f - 1).abs(),
    lambda f: (f + 1).log().sum(),
    lambda f: (f + 1).log1p(),
    lambda f: (f + 1).amin(),
    lambda f: f.max(),
    lambda f: f.masked_fill(f <= 0, torch.inf).amin(),
    lambda f: torch.where(f > 0.2, f, 0.0),
    lambda f: (f > 0.2) & (f < 0.5),
    lambda f: ~(f > 0.2),
    lambda f: f.clamp(max=0.1),
    lambda f: f.relu().tanh(),
    lambda f: f.to(torch.float32),
    lambda f: f @ W,
    lambda f: torch.matmul(f, W),
    lambda f: torch.addmm(torch.ones(3).double(), f, W),
    lambda f: torch.addmm(torch.ones(32, 3).double(), f, W),
    lambda f: f[:, 2:9],
    lambda f: f[:, 5:] @ W[5:],
    lambda f: f.split(4, dim=1)[1],
    lambda f: f.split([3, 13], -1)[1].sum(0),
    lambda f: f.new_zeros(2),
    lambda f: f.new_zeros(()).expand_as(f),
    lambda f: f.detach().clone(),
]


@pytest.mark.parametrize("function", range(len(SUPPORTED)))
def test_functions_of_codes(function: int) -> None:
    codes, plain = pair()
    found, expected = SUPPORTED[function](codes), SUPPORTED[function](plain)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    found = found.dense() if isinstance(found, Sparse) else found
    torch.testing.assert_close(found, expected)


UNSUPPORTED: list[Callable[[Tensor], Any]] = [
    lambda f: f.cumsum(1),
    lambda f: f.softmax(-1),
    lambda f: (f + 1).sum(),
    lambda f: (f + 1) @ W,
    lambda f: f + V,
    lambda f: V / f,
    lambda f: f + torch.zeros((), dtype=torch.float64, requires_grad=True),
    lambda f: f + torch.zeros_like(V).requires_grad_(),
    lambda f: f * torch.ones(32, D_SAE).double(),
    lambda f: f.T,
    lambda f: f[0],
    lambda f: f[:, 3],
    lambda f: f.relu_(),
    lambda f: f.mul_(2),
    lambda f: f.flatten(),
    lambda f: torch.stack([f, f]),
    lambda f: f * pair()[0],
    lambda f: torch.add(f, other=V),
    lambda f: f.sort(-1),
    lambda f: f.sum(axis=0),
    lambda f: f.mean(dtype=torch.float32),
    lambda f: f.amin(dim=1),
    lambda f: f.max(f.new_zeros(D_SAE)),
    lambda f: f.any(axis=0),
    lambda f: torch.addmm(torch.ones(3).double(), f, W, beta=0.5),
    lambda f: f.numpy(),
    lambda f: f.tolist(),
    lambda f: bool(f.sum(0) @ f.T),
]


@pytest.mark.parametrize("function", range(len(UNSUPPORTED)))
def test_whatever_entries_are_not_enough_for_is_refused(function: int) -> None:
    with pytest.raises(NeedsDense) as caught:
        UNSUPPORTED[function](pair()[0])
    assert caught.value.lasting


def deferred() -> tuple[Deferred, Tensor]:
    sae, x = doubles(ReLUSAE)
    with torch.no_grad():
        plain = sae.latents(x).pre
        with sae.sparsely(1.0):
            pre = sae.latents(x).pre
    assert isinstance(pre, Deferred)
    return pre, plain


@pytest.mark.parametrize(
    "function",
    [
        lambda pre: pre.relu(),
        lambda pre: torch.relu(pre + V),
        lambda pre: pre - 0.1 + V > 0.2,
        lambda pre: (pre > V) * pre,
        lambda pre: (pre > 0) * (pre + pre - 1),
        lambda pre: (pre > 0) * (1 - pre),
        lambda pre: (pre > 0) * (pre * V.exp() + V).relu(),
        lambda pre: (pre > 0).double() * torch.sigmoid(3 * pre),
        lambda pre: pre.index_select(1, torch.tensor([3, 1])),
        lambda pre: pre.detach().relu(),
    ],
)
def test_functions_of_pre_activations(function: Callable[[Tensor], Tensor]) -> None:
    pre, plain = deferred()
    found, expected = function(pre), function(plain)
    found = found.dense() if isinstance(found, Sparse) else found
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda pre: pre.sum(),
        lambda pre: pre @ W,
        lambda pre: pre.topk(2),
        lambda pre: (2 * pre) > 0,
        lambda pre: pre + deferred()[0],
        lambda pre: pre > torch.zeros(32, D_SAE),
        lambda pre: pre.exp().relu().sum(),
    ],
)
def test_whatever_needs_all_pre_activations_is_refused(function: Callable[[Tensor], Any]) -> None:
    with pytest.raises(NeedsDense):
        function(deferred()[0])


def test_they_print() -> None:
    assert repr(pair()[0]) == f"Sparse(32, {D_SAE})"
    assert str(deferred()[0]) == f"Deferred(32, {D_SAE})"


class Written(SparseAutoencoder):
    """As a user would write it who has never heard of entries."""

    activation = JumpReLU(LogThreshold(0.2))
    penalty = L0(1e-2)
    kernel: Estimator = BatchKDE(Rectangle(0.2))

    def decode(self, f: Tensor) -> Tensor:
        return f[:, : D_SAE // 2] @ self.W_dec[: D_SAE // 2] + f @ self.W_dec + self.b_dec

    def loss_terms(self, x: Tensor, latents: Any, reconstruction: Tensor, scale: float) -> Any:
        terms = super().loss_terms(x, latents, reconstruction, scale)
        strength = latents.f.abs() / (1 + latents.f.detach())
        return terms | {"mine": 0.1 * (strength * self.W_dec.norm(dim=1)).sum(-1).mean()}


def test_a_subclass_gets_it_for_nothing() -> None:
    check_paths_agree(*doubles(Written, kernel=Rectangle(0.2)))


def test_aux_losses_of_no_dead_latent() -> None:
    sae, x = doubles(TopKSAE, aux=AuxK(dead_after=10**12))
    check_paths_agree(sae, x)


def test_a_penalty_of_zero_and_an_empty_batch_of_latents() -> None:
    """Nothing fires: no entries at all, and the numbers still agree."""
    sae, x = doubles(ReLUSAE, penalty=L1(0.0))
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    check_paths_agree(sae, x)
