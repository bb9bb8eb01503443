"""Training follows its recipe, and it learns."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.activations import JumpReLU, RawThreshold, TopK
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.decoders import FreeRows
from sae_bench.penalties import L1
from sae_bench.recipe import Recipe
from sae_bench.sae import Loss, SparseAutoencoder
from sae_bench.synthetic import SyntheticFeatures, recovery
from sae_bench.train import Trainee, train
from tests.small import (
    ARCHITECTURES,
    D_IN,
    D_SAE,
    JUMP,
    RECIPE,
    bits,
    small_arms,
    small_cache,
    small_slots,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    return small_cache()


def by_hand(arm: Arm, cache: ActivationCache) -> SparseAutoencoder:
    """The recipe with plain torch, one loop."""
    recipe, sae = arm.recipe, arm.build(D_IN)
    thresholds = sae.threshold_parameters
    others = [p for p in sae.parameters() if all(p is not theta for theta in thresholds)]
    options: dict[str, Any] = {"betas": recipe.betas, "eps": recipe.adam_eps}
    optimisers = [(torch.optim.Adam(others, **options), recipe.lr)]
    if thresholds:
        rate = recipe.threshold_lr or recipe.lr
        optimisers.append((torch.optim.Adam(thresholds, **options), rate))
    batches = cache.batches(recipe.batch_size, recipe.data_seed)
    for index, x in zip(range(recipe.steps), batches, strict=False):
        if index == 0 and recipe.centre:
            sae.b_dec.data = x.mean(0)
        sae.zero_grad()
        sae.loss(x, recipe.sparsity_scale(index)).total.backward()
        sae.project_gradients_()
        if recipe.clip is not None:
            norm = torch.cat([p.grad.flatten() for p in sae.parameters()]).norm()
            for parameter in sae.parameters():
                parameter.grad *= min(1.0, recipe.clip / (norm.item() + 1e-6))
        for optimiser, rate in optimisers:
            optimiser.param_groups[0]["lr"] = rate * recipe.lr_factor(index)
            optimiser.step()
        sae.project_parameters_()
    return sae


@pytest.mark.parametrize(
    "changes",
    [{}, {"threshold_lr": 0.2}, {"clip": 0.05}, {"centre": True}, {"betas": (0.0, 0.9)}],
    ids=str,
)
def test_training_is_the_recipe_by_hand(cache: ActivationCache, changes: dict[str, Any]) -> None:
    arms = [
        *small_arms(RECIPE.replace(**changes)),
        Arm(SparseAutoencoder, D_SAE, RECIPE.replace(**changes), slots=JUMP),
    ]
    for trained in train(arms, cache, device="cpu"):
        expected = by_hand(trained.arm, cache).state_dict()
        for name, parameter in trained.sae.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-3, atol=1e-5)


def after_one_step(cache: ActivationCache, **changes: Any) -> dict[str, torch.Tensor]:
    recipe = RECIPE.replace(lr_warmup=0, lr_decay=0, penalty_warmup=0, tokens=32, **changes)
    (trained,) = train([Arm(SparseAutoencoder, D_SAE, recipe, slots=JUMP)], cache, device="cpu")
    return {name: parameter.detach() for name, parameter in trained.sae.named_parameters()}


def test_threshold_lr_reaches_exactly_the_thresholds(cache: ActivationCache) -> None:
    same_rate, own_rate = after_one_step(cache), after_one_step(cache, threshold_lr=0.5)
    for name in same_rate:
        assert torch.equal(same_rate[name], own_rate[name]) == (name != "log_threshold")
    start = torch.full((D_SAE,), 0.1).log()
    moved = (own_rate["log_threshold"] - start).abs()
    assert moved.max().item() == pytest.approx(0.5, rel=1e-3)  # Adam's first step is its rate
    slow = (same_rate["log_threshold"] - start).abs()
    assert slow.max().item() == pytest.approx(1e-2, rel=1e-3)


def test_the_penalty_warms_up(cache: ActivationCache) -> None:
    """At the first step of a warm-up the coefficient is nothing: the penalty leaves no trace."""
    runs = {}
    for coefficient in (0.0, 5.0):
        for steps in (1, 2):
            recipe = RECIPE.replace(tokens=32 * steps)
            arm = Arm(SparseAutoencoder, D_SAE, recipe, slots={"penalty": L1(coefficient)})
            (trained,) = train([arm], cache, device="cpu")
            runs[coefficient, steps] = trained
            sparsity = [row["sparsity"] for row in trained.history]
            assert sparsity[0] == 0
            if steps == 2:
                assert (sparsity[1] > 0) == (coefficient > 0)
    for steps in (1, 2):
        equal = bits(runs[0.0, steps]) == bits(runs[5.0, steps])
        assert equal == (steps == 1)


def test_clipping_bounds_the_gradient(cache: ActivationCache) -> None:
    arm = Arm(SparseAutoencoder, D_SAE, RECIPE.replace(clip=0.01), slots=JUMP)
    trainee = Trainee(arm, D_IN, CPU)
    trainee.gradients(0, next(cache.batches(32, 0)))
    gradients = [p.grad.flatten() for p in trainee.sae.parameters() if p.grad is not None]
    assert torch.cat(gradients).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_centring_starts_from_the_mean_of_the_first_batch(cache: ActivationCache) -> None:
    recipe = RECIPE.replace(tokens=32, centre=True, lr=1e-12)
    (trained,) = train([Arm(SparseAutoencoder, D_SAE, recipe)], cache, device="cpu")
    mean = next(cache.batches(32, recipe.data_seed)).mean(0)
    torch.testing.assert_close(trained.sae.b_dec.detach(), mean)


def test_constraints_hold_and_counters_count_after_training(cache: ActivationCache) -> None:
    raw = JUMP | {"activation": JumpReLU(RawThreshold(1e-3)), "penalty": L1(1.0)}
    arms = [*small_arms(), Arm(SparseAutoencoder, D_SAE, RECIPE, slots=raw)]
    for trained in train(arms, cache, device="cpu"):
        sae = trained.sae
        if sae.decoder != FreeRows():
            assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
        if sae.threshold is not None:
            assert (sae.threshold >= 0).all()
        assert sae.silent_tokens.min() >= 0
        assert sae.silent_tokens.max() <= RECIPE.tokens
        assert (sae.silent_tokens % 32 == 0).all()


# -- it learns ------------------------------------------------------------------------------------


def test_every_architecture_learns_known_features() -> None:
    features = SyntheticFeatures(d_in=20, n_features=20, mean_l0=2.0, decay=0.0)
    cache = features.cache(3_000, seed=1)
    recipe = Recipe(
        tokens=400 * 128,
        batch_size=128,
        lr=1e-2,
        betas=(0.9, 0.999),
        lr_warmup=0,
        lr_decay=100,
        penalty_warmup=100,
    )
    tuned: dict[str, dict[str, Any]] = {
        "ReLUSAE": {"penalty": L1(0.3)},
        "GatedSAE": {"penalty": L1(0.3)},
        "JumpReLUSAE": JUMP,
        "TopKSAE": {"activation": TopK(3)},
    }
    arms = [
        Arm(cls, 32, recipe, slots=tuned.get(name, small_slots(cls)))
        for name, cls in ARCHITECTURES.items()
    ]
    x = next(cache.batches(1_000, seed=9))
    for trained in train(arms, cache, device="cpu"):
        name = trained.arm.architecture.__name__
        assert trained.reason is None, name
        with torch.no_grad():
            fvu = (x - trained.sae(x)).square().sum() / (x - x.mean(0)).square().sum()
            l0 = (trained.sae.encode(x) > 0).sum() / len(x)
            start, end = (
                recovery(sae.W_dec, features.directions()).mean()
                for sae in (trained.arm.build(20), trained.sae)
            )
        assert fvu < 0.1, (name, fvu)
        assert trained.history[-1]["fvu"] < 0.2 * trained.history[0]["fvu"]
        assert end > start + 0.2, (name, start, end)
        if name in tuned:  # with their sparsity set, they find the features
            assert 1 < l0 < 4, (name, l0)
            assert start < 0.5 < 0.85 < end, (name, start, end)


# -- options --------------------------------------------------------------------------------------


def test_autocast_rounds_products_and_nothing_else(cache: ActivationCache) -> None:
    plain, rounded = small_arms(), small_arms(RECIPE.replace(autocast=True))
    for exact, trained in zip(
        train(plain, cache, device="cpu"), train(rounded, cache, device="cpu"), strict=True
    ):
        assert trained.reason is None
        assert {p.dtype for p in trained.sae.parameters()} == {torch.float32}
        assert bits(trained) != bits(exact)
        last, reference = trained.history[-1], exact.history[-1]
        assert last["fvu"] == pytest.approx(reference["fvu"], rel=0.2)


def check_compiled_training() -> None:
    """Compiled arms of all architectures against the same arms run eagerly. The graphs are captured
    and differentiated by torch.compile but not turned into C++, which would take a minute."""
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    cache, recipe = small_cache(), RECIPE.replace(tokens=3 * 32)
    expected = train(small_arms(recipe), cache, device="cpu")
    found = train(small_arms(recipe.replace(compile=True)), cache, device="cpu")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len(found)
    for ours, reference in zip(found, expected, strict=True):
        assert ours.reason is None, ours.reason
        state = reference.sae.state_dict()
        for name, tensor in ours.sae.state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6)


def test_compiled_training_agrees() -> None:
    """In a process of its own: shape checks at run time and torch.compile exclude each other."""
    code = f"from {__name__} import check_compiled_training as check; check()"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_empty_list_of_arms_is_no_training(cache: ActivationCache) -> None:
    assert train([], cache, device="cpu") == []


def test_a_step_returns_its_loss(cache: ActivationCache) -> None:
    trainee = Trainee(Arm(SparseAutoencoder, D_SAE, RECIPE), D_IN, CPU)
    loss = trainee.step(0, next(cache.batches(32, 0)))
    assert isinstance(loss, Loss)
    assert trainee.result.history == []
