"""Lockstep training on small caches: bit for bit invisible, and it learns."""

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import sae_bench.train
from sae_bench.activations import JumpReLU, LogThreshold, RawThreshold, TopK
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.decoders import FreeRows
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1, RIL1
from sae_bench.recipe import Recipe
from sae_bench.sae import Loss, SparseAutoencoder
from sae_bench.synthetic import SyntheticFeatures, recovery
from sae_bench.train import Trained, Trainee, group_key, memory_need, train, waves
from tests.small import ARCHITECTURES, D_IN, D_SAE, small_slots

CPU = torch.device("cpu")
RECIPE = Recipe(
    tokens=20 * 32,
    batch_size=32,
    lr=1e-2,
    betas=(0.9, 0.999),
    lr_warmup=4,
    lr_decay=4,
    penalty_warmup=8,
)
JUMP = {"activation": JumpReLU(LogThreshold(0.1)), "penalty": L0(1e-2), "kernel": Rectangle(0.2)}


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    x = torch.randn(500, D_IN, generator=torch.Generator().manual_seed(0))
    return ActivationCache.from_tensor(x + 0.5)


def all_arms(recipe: Recipe = RECIPE) -> list[Arm]:
    """An arm of every architecture, and some with other slots."""
    return [
        *(Arm(cls, D_SAE, recipe, slots=small_slots(cls)) for cls in ARCHITECTURES.values()),
        Arm(SparseAutoencoder, 9, recipe, 1, JUMP | {"activation": JumpReLU(RawThreshold(0.1))}),
        Arm(SparseAutoencoder, 7, recipe, slots={"penalty": RIL1(0.1), "decoder": FreeRows()}),
    ]


def bits(trained: Trained) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in trained.sae.state_dict().items()}


def same(found: Sequence[Trained], expected: Sequence[Trained]) -> None:
    assert len(found) == len(expected)
    for ours, reference in zip(found, expected, strict=True):
        assert ours.arm is reference.arm
        assert ours.reason == reference.reason
        assert ours.history == reference.history
        assert bits(ours) == bits(reference)


def alone(arms: Sequence[Arm], cache: ActivationCache) -> list[Trained]:
    return [train([arm], cache, device="cpu")[0] for arm in arms]


# -- lockstep is invisible ------------------------------------------------------------------------


def test_together_is_bit_for_bit_alone(cache: ActivationCache) -> None:
    """All architectures, arms that end earlier, other batch sizes and data orders, at once."""
    arms = all_arms()
    arms += [
        Arm(SparseAutoencoder, D_SAE, RECIPE.replace(**change), slots=JUMP)
        for change in (
            {"tokens": 5 * 32},
            {"tokens": 33 * 32},
            {"data_seed": 1},
            {"batch_size": 20},
            {"centre": True},
            {"clip": 0.1},
            {"threshold_lr": 0.1},
            {"autocast": True},
        )
    ]
    expected = alone(arms, cache)
    assert [trained.reason for trained in expected] == [None] * len(arms)
    assert len({str(bits(trained)) for trained in expected}) == len(arms)
    same(train(arms, cache, device="cpu"), expected)
    same(train(arms[::-1], cache, device="cpu"), expected[::-1])


@pytest.mark.parametrize("memory", [0, 40_000, 10**12])
def test_waves_are_invisible(cache: ActivationCache, memory: int) -> None:
    arms = all_arms()
    same(train(arms, cache, device="cpu", memory=memory), alone(arms, cache))


def test_waves_fill_the_budget_in_order() -> None:
    arms = [Arm(SparseAutoencoder, d_sae, RECIPE) for d_sae in (1, 2, 3, 4)]

    def sizes(needs: list[int], budget: int) -> list[list[int]]:
        return [[arm.d_sae for arm in wave] for wave in waves(arms, needs, budget)]

    assert sizes([3, 3, 3, 3], 6) == [[1, 2], [3, 4]]
    assert sizes([3, 3, 3, 3], 11) == [[1, 2, 3], [4]]
    assert sizes([9, 1, 1, 9], 2) == [[1], [2, 3], [4]]
    assert sizes([1, 1, 1, 1], 0) == [[1], [2], [3], [4]]
    assert list(waves([], [], 5)) == []


def test_memory_need_counts_parameters_four_times() -> None:
    need = memory_need(Arm(SparseAutoencoder, D_SAE, RECIPE), D_IN)
    parameters = 2 * D_IN * D_SAE + D_IN + D_SAE
    assert need == 4 * 4 * parameters + 8 * 32 * D_SAE * 4


def test_groups_share_batches() -> None:
    arm = Arm(SparseAutoencoder, D_SAE, RECIPE)
    longer = dataclasses.replace(arm, recipe=RECIPE.replace(tokens=9_999, lr=1.0), seed=7)
    assert group_key(longer) == group_key(arm)
    for change in ({"batch_size": 16}, {"data_seed": 1}):
        other = dataclasses.replace(arm, recipe=RECIPE.replace(**change))
        assert group_key(other) != group_key(arm)


def test_training_draws_from_no_global_generator(cache: ActivationCache) -> None:
    arms, random = all_arms(), torch.get_rng_state()
    first = train(arms, cache, device="cpu")
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(99)
    same(train(arms, cache, device="cpu"), first)


def test_seeds_pair_arms(cache: ActivationCache) -> None:
    """`seed` draws the weights alone, `data_seed` the data alone."""
    seen: dict[str, list[bytes]] = {}

    class WatchingSAE(SparseAutoencoder):
        who: str = ""

        def loss_terms(self, x: Any, *rest: Any) -> Any:
            seen.setdefault(self.who, []).append(x.numpy().tobytes())
            return super().loss_terms(x, *rest)

    for who, seed, data_seed in (("a", 0, 0), ("b", 1, 0), ("c", 0, 1)):
        recipe = RECIPE.replace(data_seed=data_seed)
        train([Arm(WatchingSAE, D_SAE, recipe, seed, {"who": who})], cache, device="cpu")
    assert seen["a"] == seen["b"]
    assert seen["a"] != seen["c"]
    assert len(seen["a"]) == RECIPE.steps


# -- arms that fail -------------------------------------------------------------------------------


class BreakingSAE(SparseAutoencoder):
    """Raises when it has seen enough."""

    batches: int = 3

    def loss_terms(self, x: Any, *rest: Any) -> Any:
        if self.silent_tokens.max() >= self.batches * 32:
            raise RuntimeError("cannot\ngo on")
        return super().loss_terms(x, *rest)

    def observe(self, latents: Any) -> None:
        self.silent_tokens += len(latents.f)


def test_an_arm_that_raises_ends_alone(cache: ActivationCache) -> None:
    arms = all_arms()
    expected = alone(arms, cache)
    breaking = Arm(BreakingSAE, D_SAE, RECIPE)
    ended: list[Trained] = []
    found = train([breaking, *arms], cache, device="cpu", finished=ended.append)
    same(found[1:], expected)
    assert found[0].reason == "RuntimeError: cannot go on"
    assert len(found[0].history) == 3
    assert ended[0] is found[0]
    assert {id(trained) for trained in ended} == {id(trained) for trained in found}


def test_an_arm_that_diverges_ends_alone(cache: ActivationCache) -> None:
    arms = all_arms()
    expected = alone(arms, cache)
    wild = Arm(SparseAutoencoder, D_SAE, RECIPE.replace(lr=1e30, tokens=100 * 32))
    found = train([*arms, wild], cache, device="cpu")
    same(found[:-1], expected)
    assert (found[-1].reason or "").startswith("diverged: loss not finite by step ")
    assert len(found[-1].history) < 20


@pytest.mark.parametrize("logged", [1, 100])
def test_a_divergence_between_logged_steps_is_never_overlooked(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch, logged: int
) -> None:
    monkeypatch.setattr(sae_bench.train, "LOGGED", logged)
    wild = Arm(SparseAutoencoder, D_SAE, RECIPE.replace(lr=1e30, lr_warmup=0))
    (trained,) = train([wild], cache, device="cpu")
    assert trained.reason is not None


class LateSAE(SparseAutoencoder):
    """A finite loss whose gradient is not: sqrt at 0."""

    def loss_terms(self, x: Any, *rest: Any) -> Any:
        return super().loss_terms(x, *rest) | {"late": (self.b_dec * 0).sum().sqrt()}


def test_parameters_that_diverge_in_the_last_step_are_noticed(cache: ActivationCache) -> None:
    (trained,) = train([Arm(LateSAE, D_SAE, RECIPE.replace(tokens=32))], cache, device="cpu")
    assert trained.reason == "diverged: parameters not finite by step 1"


def test_an_interrupt_is_not_swallowed(cache: ActivationCache) -> None:
    class InterruptedSAE(SparseAutoencoder):
        def loss_terms(self, x: Any, *rest: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([Arm(InterruptedSAE, D_SAE, RECIPE)], cache, device="cpu")


# -- observing changes nothing --------------------------------------------------------------------


def test_logging_changes_nothing(cache: ActivationCache, monkeypatch: pytest.MonkeyPatch) -> None:
    arms, found = all_arms(), []
    for logged in (1, 7, 10_000):
        monkeypatch.setattr(sae_bench.train, "LOGGED", logged)
        found.append(train(arms, cache, device="cpu"))
    assert [len(trained[0].history) for trained in found] == [1, 10, 20]
    for trained in found[1:]:
        assert [bits(t) for t in trained] == [bits(t) for t in found[0]]
        assert [t.history[-1] for t in trained] == [t.history[-1] for t in found[0]]


def test_the_history_tells_what_happened(cache: ActivationCache) -> None:
    arm = Arm(SparseAutoencoder, D_SAE, RECIPE, slots=JUMP)
    (trained,) = train([arm], cache, device="cpu")
    assert [row["step"] for row in trained.history] == list(range(1, 21))
    assert [row["tokens"] for row in trained.history] == [32 * step for step in range(1, 21)]
    for index, row in enumerate(trained.history):
        assert row["lr"] == RECIPE.lr * RECIPE.lr_factor(index)
        assert row["sparsity_scale"] == RECIPE.sparsity_scale(index)
        assert row.keys() >= {"l0", "fvu", "reconstruction", "sparsity"}
    first = trained.history[0]
    x = next(cache.batches(32, RECIPE.data_seed))
    start = arm.build(D_IN)
    assert first["l0"] == pytest.approx((start.encode(x) > 0).sum().item() / 32)
    error = (x - start(x)).square().sum()
    assert first["fvu"] == pytest.approx((error / (x - x.mean(0)).square().sum()).item(), rel=1e-5)
    assert first["reconstruction"] == pytest.approx(error.item() / 32, rel=1e-5)
    assert trained.seconds > 0


# -- the recipe is followed -----------------------------------------------------------------------


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
        *all_arms(RECIPE.replace(**changes)),
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
    trainee.step(0, next(cache.batches(32, 0)))
    gradients = [p.grad.flatten() for p in trainee.sae.parameters() if p.grad is not None]
    assert torch.cat(gradients).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_centring_starts_from_the_mean_of_the_first_batch(cache: ActivationCache) -> None:
    recipe = RECIPE.replace(tokens=32, centre=True, lr=1e-12)
    (trained,) = train([Arm(SparseAutoencoder, D_SAE, recipe)], cache, device="cpu")
    mean = next(cache.batches(32, recipe.data_seed)).mean(0)
    torch.testing.assert_close(trained.sae.b_dec.detach(), mean)


def test_constraints_hold_and_counters_count_after_training(cache: ActivationCache) -> None:
    raw = JUMP | {"activation": JumpReLU(RawThreshold(1e-3)), "penalty": L1(1.0)}
    arms = [*all_arms(), Arm(SparseAutoencoder, D_SAE, RECIPE, slots=raw)]
    for trained in train(arms, cache, device="cpu"):
        sae = trained.sae
        if sae.decoder != FreeRows():
            assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
        if sae.threshold is not None:
            assert (sae.threshold >= 0).all()
        assert 0 <= sae.silent_tokens.min()
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
    plain, rounded = all_arms(), all_arms(RECIPE.replace(autocast=True))
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
    x = torch.randn(500, D_IN, generator=torch.Generator().manual_seed(0))
    cache, recipe = ActivationCache.from_tensor(x), RECIPE.replace(tokens=3 * 32)
    expected = train(all_arms(recipe), cache, device="cpu")
    found = train(all_arms(recipe.replace(compile=True)), cache, device="cpu")
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
