"""Estimators in training: where their state lives, when it moves, and that arms learn with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.activations import JumpReLU, LogThreshold, RawThreshold
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError
from sae_bench.estimators import (
    BatchKDE,
    Estimator,
    ExactJump,
    MeanKDE,
    MomentumKDE,
    PersistentBandwidth,
    TargetCount,
    WindowKDE,
)
from sae_bench.kernels import Rectangle, Triangle
from sae_bench.loading import load_sae
from sae_bench.penalties import L0
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.synthetic import SyntheticFeatures
from sae_bench.train import Trainee, train
from tests.near import EVERY, inputs, sae_of, threshold_gradient
from tests.small import D_IN, D_SAE, JUMP, RECIPE, bits, small_cache

CPU = torch.device("cpu")
each = pytest.mark.parametrize("estimator", EVERY, ids=lambda estimator: estimator.label)
STATEFUL = [estimator for estimator in EVERY if estimator.init(1)]


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    return small_cache()


def arm_with(estimator: Estimator, **slots: Any) -> Arm:
    return Arm(SparseAutoencoder, D_SAE, RECIPE, slots={**JUMP, "kernel": estimator, **slots})


def state_of(sae: SparseAutoencoder) -> dict[str, bytes]:
    """Everything that is no parameter, to the last bit."""
    return {name: buffer.numpy().tobytes() for name, buffer in sae.named_buffers()}


# -- the state ------------------------------------------------------------------------------------


@each
def test_lockstep_equals_alone(estimator: Estimator, cache: ActivationCache) -> None:
    arms = [arm_with(estimator), arm_with(BatchKDE(Rectangle(0.2))), arm_with(EVERY[3])]
    together = train(arms, cache, device="cpu")
    alone = [train([arm], cache, device="cpu")[0] for arm in arms]
    assert [trained.reason for trained in together] == [None] * 3
    assert [bits(t) for t in together] == [bits(t) for t in alone]
    assert bits(together[0]) != bits(together[1])


@pytest.mark.parametrize("estimator", STATEFUL, ids=lambda estimator: estimator.label)
def test_the_state_advances_once_a_step_and_never_otherwise(
    estimator: Estimator, cache: ActivationCache
) -> None:
    trainee = Trainee(arm_with(estimator), D_IN, CPU)
    sae, batches = trainee.sae, cache.batches(32, 0)
    for index in range(3):
        before = state_of(sae)
        x = next(batches)
        for _ in range(2):  # what evaluation and logging do
            loss = sae.loss(x, 0.5)
            loss.latents.f.retain_grad()
            loss.total.backward()
            sae.eval()(x)
            sae.train().encode(x)
        assert state_of(sae) == before
        loss = trainee.step(index, x)
        after = state_of(sae)
        assert any(after[name] != before[name] for name in after if name.startswith("estimator_"))
        trainee.log(index, x, loss)
        assert state_of(sae) == after
    counted = [buffer.item() for name, buffer in sae.named_buffers() if name.endswith("step")]
    assert all(count == 3 for count in counted)


@pytest.mark.parametrize("estimator", STATEFUL, ids=lambda estimator: estimator.label)
def test_the_state_is_in_the_checkpoint(estimator: Estimator) -> None:
    """A copy that got the state dict goes on with the same bits; one without the state does not."""
    sae, penalty = sae_of(L0(0.3), estimator), L0(0.3)
    for seed in range(3):
        threshold_gradient(sae, inputs(50, seed))
    resumed, forgetful = sae_of(penalty, estimator), sae_of(penalty, estimator)
    resumed.load_state_dict(sae.state_dict())
    found = [threshold_gradient(each, inputs(50, 9)) for each in (sae, resumed, forgetful)]
    assert torch.equal(found[1], found[0])
    assert state_of(resumed) == state_of(sae)
    assert not torch.equal(found[2], found[0])


@each
def test_the_state_follows_the_sae(estimator: Estimator) -> None:
    sae = SparseAutoencoder(D_IN, D_SAE, **{**JUMP, "kernel": estimator})
    names = {f"estimator_{name}" for name in estimator.init(D_SAE)}
    assert names <= set(dict(sae.named_buffers()))
    wide = sae.double()
    assert {b.dtype for b in wide.buffers()} <= {torch.float64, torch.int64, torch.int32}
    assert all(b.device.type == "meta" for b in wide.to("meta").buffers())


@each
def test_a_saved_sae_leaves_the_state_out(
    estimator: Estimator, cache: ActivationCache, tmp_path: Path
) -> None:
    (trained,) = train([arm_with(estimator)], cache, device="cpu")
    sae = trained.sae
    assert sae is not None
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.kernel == estimator
    x = next(cache.batches(32, 5))
    assert torch.equal(loaded(x), sae.eval()(x))
    fresh = SparseAutoencoder(D_IN, D_SAE, **{**JUMP, "kernel": estimator})
    start = {k: v for k, v in state_of(fresh).items() if k.startswith("estimator_")}
    assert {k: v for k, v in state_of(loaded).items() if k.startswith("estimator_")} == start


def test_folding_forgets_what_was_seen_in_other_units() -> None:
    """An SAE that is folded and trained on goes on as if its estimator were new."""
    for estimator in STATEFUL:
        sae = sae_of(L0(0.3), estimator)
        threshold_gradient(sae, inputs(50))
        sae.fold_(3.0)
        fresh = sae.kernel.init(6)
        for name, value in fresh.items():
            found = sae.get_buffer(f"estimator_{name}")
            torch.testing.assert_close(found, value.to(found.dtype), equal_nan=True)


@pytest.mark.parametrize("form", [RawThreshold(0.2), LogThreshold(0.2)], ids=lambda form: form.name)
def test_log_and_raw_thresholds(form: RawThreshold | LogThreshold) -> None:
    """A log threshold's gradient is theta times the raw one."""
    for estimator in EVERY:
        raw, other = sae_of(L0(0.3), estimator), sae_of(L0(0.3), estimator, form)
        with torch.no_grad():
            raw.threshold_parameters[0].copy_(other.threshold)
        found, expected = (threshold_gradient(sae, inputs(50)) for sae in (other, raw))
        factor = other.threshold.detach() if isinstance(form, LogThreshold) else 1.0
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, factor * expected)


def test_only_thresholds_and_nothing_else_are_estimated() -> None:
    """All other gradients are those of the batch, bit for bit."""
    x, gradients = inputs(50), []
    for estimator in (BatchKDE(Rectangle(0.4)), WindowKDE(Rectangle(0.4), coefficient=ExactJump())):
        sae = sae_of(L0(0.3), estimator)
        threshold_gradient(sae, x)
        gradients.append({name: p.grad for name, p in sae.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient) == (name != "raw_threshold")


def test_training_saves_the_gradient_that_would_be_replaced() -> None:
    """Left to the estimator, thresholds get no gradient from backward (a window of 8 steps then
    costs less than the batch estimate); everything else, and the estimate, keep their bits. The
    paper's estimator is backward itself, and loses nothing."""
    x = inputs(50)
    for estimator in (BatchKDE(Rectangle(0.4)), *EVERY):
        plain, saving = (sae_of(L0(0.3), estimator) for _ in range(2))
        threshold_gradient(plain, x)
        with saving.thresholds_left_to_estimator():
            loss = saving.loss(x)
        loss.latents.f.retain_grad()
        loss.total.backward()
        (threshold,) = saving.threshold_parameters
        assert (threshold.grad is None) == (not estimator.is_backward)
        saving.estimate_(loss, 1.0)
        for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
            assert other.requires_grad
            assert torch.equal(one.grad, other.grad)


def test_without_a_threshold_an_estimator_that_remembers_is_refused() -> None:
    with pytest.raises(InputError, match="ReLU trains no threshold"):
        SparseAutoencoder(D_IN, D_SAE, kernel=WindowKDE(Rectangle(0.2)))


def test_samples_and_compilation_exclude_each_other() -> None:
    arm = arm_with(WindowKDE(Rectangle(0.2)))
    compiled = Arm(arm.architecture, D_SAE, RECIPE.replace(compile=True), slots=arm.slots)
    with pytest.raises(InputError, match=r"needs the gradients of the codes, .* use compile=False"):
        Trainee(compiled, D_IN, CPU)


# -- it learns ------------------------------------------------------------------------------------


def test_arms_learn_with_every_estimator_and_their_l0_settles() -> None:
    features = SyntheticFeatures(d_in=20, n_features=20, mean_l0=2.0, decay=0.0)
    cache = features.cache(3_000, seed=1)
    recipe = Recipe(
        tokens=200 * 100,
        batch_size=100,
        lr=1e-2,
        betas=(0.9, 0.999),
        lr_warmup=0,
        lr_decay=50,
        penalty_warmup=50,
    )
    around = Triangle(0.1)
    estimators = [
        BatchKDE(around, coefficient=ExactJump()),
        MomentumKDE(around),
        MeanKDE(around, coefficient=ExactJump()),
        WindowKDE(around),
        WindowKDE(around, coefficient=ExactJump()),
        PersistentBandwidth(BatchKDE(around)),
        PersistentBandwidth(WindowKDE(around, coefficient=ExactJump()), TargetCount()),
    ]
    forms = [LogThreshold(0.1), RawThreshold(0.1)]
    arms = [
        Arm(
            SparseAutoencoder,
            32,
            recipe,
            slots={
                "activation": JumpReLU(forms[index % 2]),
                "penalty": L0(5e-2),
                "kernel": estimator,
            },
        )
        for index, estimator in enumerate(estimators)
    ]
    for trained in train(arms, cache, device="cpu"):
        name = trained.arm.slots["kernel"].label
        assert trained.reason is None, name
        last, earlier = (
            sum(row["l0"] for row in rows) / len(rows)
            for rows in (trained.history[-10:], trained.history[-20:-10])
        )
        assert last == pytest.approx(earlier, rel=0.1), name
        assert 1.5 < last < 3, (name, last)
        assert trained.history[-1]["fvu"] < 0.1, (name, trained.history[-1]["fvu"])
        theta = trained.sae.threshold
        assert theta.std() > 1e-3, name
