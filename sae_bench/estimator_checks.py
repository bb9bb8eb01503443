"""The conformance suite for estimators of threshold gradients."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.activations import JumpReLU, RawThreshold
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.estimator import Estimator, KernelEstimator, State
from sae_bench.penalties import L0
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.samples import Batch, Present, Samples
from sae_bench.suite import ComponentSuite
from sae_bench.train import train

ESTIMATOR: ComponentSuite[Estimator] = ComponentSuite(Estimator)
D_SAE, TOKENS, STEPS = 32, 512, 40
WORTH = torch.tensor([1.0, -1.0]).repeat(D_SAE // 2)


# -- latents that know nothing of each other, whose gradient is known -----------------------------


def _batch(estimator: Estimator, seed: int) -> Batch:
    """All tokens of a batch. In units of the kernel's bandwidth, pre is normal around theta = 3
    with deviation 4; ||d|| = 1, e = pre +- 2 theta, and the penalty is theta^2 L0: a latent at its
    threshold is worth J = +-4 theta^2 (`WORTH` has the signs)."""
    eps = estimator.kernel.bandwidth
    theta = torch.full((D_SAE,), 3 * eps)
    z = torch.randn(TOKENS, D_SAE, generator=torch.Generator().manual_seed(seed))
    pre = theta + 4 * eps * z
    latent = torch.arange(D_SAE).expand(TOKENS, D_SAE)
    projection = pre + 2 * theta * WORTH
    columns = (latent, pre, projection, torch.ones_like(pre), torch.ones_like(pre))
    every = torch.ones(D_SAE)
    present = Present(theta, every, every, L0(1.0), 9 * eps**2)
    return Batch(Samples(*(column.flatten() for column in columns)), present, TOKENS)


def _truth(estimator: Estimator) -> Float[Tensor, " d_sae"]:
    """p(theta) J."""
    eps = estimator.kernel.bandwidth
    return WORTH * 4 * (3 * eps) ** 2 / (4 * eps * math.sqrt(2 * math.pi))


def _near(batch: Batch, reach: float | Tensor) -> Batch:
    """What the trainer hands over: the samples within reach of their threshold."""
    if isinstance(reach, Tensor):
        reach = reach.expand(D_SAE)[batch.samples.latent]
    kept = (batch.samples.pre - batch.present.theta[batch.samples.latent]).abs() <= reach
    return batch._replace(samples=Samples(*(column[kept] for column in batch.samples)))


def _walk(estimator: Estimator, steps: int, *, all_samples: bool = False) -> tuple[Tensor, State]:
    """The gradients of some steps, (steps, d_sae), and the state after them."""
    state: State = estimator.init(D_SAE)
    found = []
    for seed in range(steps):
        batch = _batch(estimator, seed)
        if not all_samples:
            batch = _near(batch, estimator.reach(state))
        gradient, state = estimator.estimate(state, batch)
        found.append(gradient)
    return torch.stack(found), state


@ESTIMATOR.first
def gives_a_gradient_and_a_state(estimator: Estimator) -> None:
    """`init` gives named tensors; `estimate` one finite number a latent, and a state of the same
    names, shapes and types (checkpoints rest on that), also when no sample is near."""
    start = estimator.init(D_SAE)
    for name, value in start.items():
        assert isinstance(value, Tensor), f"`init`: state {name!r} must be a tensor, got {value!r}"
    for batch in (_batch(estimator, 0), _near(_batch(estimator, 0), -1.0)):
        answer = estimator.estimate(dict(start), batch)
        assert isinstance(answer, tuple), "`estimate` must return (gradient, state)"
        assert len(answer) == 2, "`estimate` must return (gradient, state)"
        gradient, after = answer
        assert isinstance(gradient, Tensor), "`estimate` must return a tensor as the gradient"
        assert gradient.shape == (D_SAE,), (
            f"`estimate` must return one number a latent, ({D_SAE},), got {tuple(gradient.shape)}"
        )
        assert gradient.isfinite().all(), "the gradient must be finite, without samples too"
        names = sorted(after) if isinstance(after, Mapping) else after
        assert names == sorted(start), (
            f"`estimate` must return the state that `init` gave, {sorted(start)}, got {names}"
        )
        for name, value in start.items():
            wanted, found = ((each.shape, each.dtype) for each in (value, after[name]))
            assert found == wanted, f"state {name!r} was {wanted}, `estimate` returned {found}"


@ESTIMATOR
def changes_nothing_that_it_is_given(estimator: Estimator) -> None:
    """State, samples and thresholds that go in stay as they are."""
    _, state = _walk(estimator, 2)
    batch = _batch(estimator, 2)
    given = {
        **{f"state {name!r}": value for name, value in state.items()},
        **batch.samples._asdict(),
        **dict(zip(("theta", "norms", "curvature"), batch.present, strict=False)),
    }
    before = {name: value.clone() for name, value in given.items()}
    estimator.estimate(state, batch)
    for name, value in given.items():
        same = torch.equal(value.nan_to_num(), before[name].nan_to_num())
        assert same, f"`estimate` changed {name} in place: return a new tensor"


@ESTIMATOR
def points_where_the_truth_points(estimator: Estimator) -> None:
    """On average over independent batches the gradient is about p(theta) J, in sign and size."""
    gradients, _ = _walk(estimator, STEPS)
    found, truth = gradients[STEPS // 2 :].mean(0), _truth(estimator)
    cosine = torch.nn.functional.cosine_similarity(found, truth, dim=0).item()
    assert cosine > 0.5, (
        f"the mean gradient and dE[L]/dtheta have a cosine of {cosine:.2f}: check its sign"
    )
    ratio = (found.norm() / truth.norm()).item()
    assert 0.1 < ratio < 10, (
        f"the mean gradient is {ratio:.3g} times dE[L]/dtheta: is it a mean over `batch.tokens`?"
    )


@ESTIMATOR
def needs_no_samples_beyond_its_reach(estimator: Estimator) -> None:
    """Samples that the trainer leaves out make no difference."""
    (near, _), (everything, _) = (_walk(estimator, 4, all_samples=each) for each in (False, True))
    scale = everything.abs().max().item()
    assert torch.allclose(near, everything, rtol=1e-2, atol=1e-3 * scale), (
        "samples beyond `reach` change the gradient: widen `reach`, or look at nearer ones only"
    )


@ESTIMATOR
def takes_the_bandwidth_that_it_is_given(estimator: Estimator) -> None:
    """`reach` and `estimate` take a bandwidth, one for all or one a latent; an estimator around a
    kernel uses it in place of the kernel's (PersistentBandwidth rests on that)."""
    eps, state = estimator.kernel.bandwidth, estimator.init(D_SAE)
    batch, found = _batch(estimator, 0), []
    for width in (None, eps, torch.full((D_SAE,), eps), torch.full((D_SAE,), 1.7 * eps)):
        estimator.reach(state, width)
        found.append(estimator.estimate(state, batch, bandwidth=width)[0])
    for gradient in found[1:3]:
        assert torch.allclose(gradient, found[0], rtol=1e-3, atol=1e-5 * eps), (
            "the kernel's own bandwidth, given to `estimate`, changes the gradient"
        )
    if isinstance(estimator, KernelEstimator):
        assert not torch.allclose(found[3], found[0]), (
            "`estimate` must use the bandwidth that it is given: `self.width(bandwidth)`"
        )


# -- in training ----------------------------------------------------------------------------------


def _arm(estimator: Estimator, steps: int = 12) -> Arm:
    recipe = Recipe(tokens=steps * 128, batch_size=128, lr=1e-3, lr_warmup=0, penalty_warmup=0)
    activation = JumpReLU(RawThreshold(estimator.kernel.bandwidth * 2))
    slots = {"activation": activation, "penalty": L0(1e-3), "kernel": estimator}
    return Arm(SparseAutoencoder, 64, recipe, slots=slots)


def _x(rows: int = 1024) -> Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(0)) / 4


def _trained(estimator: Estimator) -> Tensor:
    """The thresholds after some steps."""
    cache = ActivationCache.from_tensor(_x(), held_out=0.0)
    (trained,) = train([_arm(estimator)], cache, device="cpu")
    assert trained.reason is None, f"training ended with: {trained.reason}"
    assert trained.sae is not None
    assert trained.sae.threshold is not None
    return trained.sae.threshold.detach()


@ESTIMATOR
def moves_thresholds(estimator: Estimator) -> None:
    """Some steps of training leave finite thresholds, and not where they started."""
    theta = _trained(estimator)
    assert theta.isfinite().all(), "thresholds are not finite"
    moved = (theta - estimator.kernel.bandwidth * 2).abs().max()
    assert moved > 0, "no threshold moved: does `estimate` return a gradient for each latent?"


@ESTIMATOR
def gives_the_same_bits_again(estimator: Estimator) -> None:
    """Nothing random, nothing kept outside the state."""
    same = torch.equal(_trained(estimator), _trained(estimator))
    assert same, "keep memory in the state that goes in and out, never in the object"


@ESTIMATOR
def is_what_backward_gives_where_it_says_so(estimator: Estimator) -> None:
    """Where `is_backward` is True, `estimate` is not called: it must be what autograd computes."""
    if not estimator.is_backward:
        return
    sae = _arm(estimator).build(16)
    loss = sae.loss(_x(128))
    loss.latents.f.retain_grad()
    loss.total.backward()
    found, _ = estimator.estimate(sae.estimator_state, sae.batch(loss, 1.0))
    (threshold,) = sae.threshold_parameters
    assert threshold.grad is not None
    scale = threshold.grad.abs().max().item()
    assert torch.allclose(found, threshold.grad, rtol=1e-3, atol=1e-4 * scale), (
        "`is_backward` is True, so `estimate` is never called, but it gives another gradient than "
        "backward: leave `is_backward` as it is in `Estimator`"
    )
