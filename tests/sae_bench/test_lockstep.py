"""Arms trained in lockstep: together is bit for bit alone, whatever befalls the others."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import sae_bench.train
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.sae import SparseAutoencoder
from sae_bench.train import Trained, group_key, train
from tests.small import D_IN, D_SAE, JUMP, RECIPE, bits, small_arms, small_cache


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    return small_cache()


def same(found: Sequence[Trained], expected: Sequence[Trained]) -> None:
    assert len(found) == len(expected)
    for ours, reference in zip(found, expected, strict=True):
        assert ours.arm is reference.arm
        assert ours.reason == reference.reason
        assert ours.history == reference.history
        assert bits(ours) == bits(reference)


def alone(arms: Sequence[Arm], cache: ActivationCache) -> list[Trained]:
    return [train([arm], cache, device="cpu")[0] for arm in arms]


def test_together_is_bit_for_bit_alone(cache: ActivationCache) -> None:
    """All architectures, arms that end earlier, other batch sizes and data orders, at once."""
    arms = small_arms()
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
    arms = small_arms()
    same(train(arms, cache, device="cpu", memory=memory), alone(arms, cache))


@pytest.mark.parametrize("name", ["TopKSAE", "ReLUSAE", "JumpReLUSAE"])
def test_peak_memory_of_a_group(name: str) -> None:
    """At most 4.2 times the parameters of all arms and a dozen arrays of batch x d_sae of one of
    them. (Three times are weights and Adam's moments; gradients are one arm's at a time.)"""
    done = subprocess.run(
        [sys.executable, "-m", "tests.memory", name], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert 3 * found["parameters"] < found["peak"]
    assert found["peak"] <= 4.2 * found["parameters"] + 12 * found["array"]


def test_groups_share_batches() -> None:
    arm = Arm(SparseAutoencoder, D_SAE, RECIPE)
    longer = dataclasses.replace(arm, recipe=RECIPE.replace(tokens=9_999, lr=1.0), seed=7)
    assert group_key(longer) == group_key(arm)
    for change in ({"batch_size": 16}, {"data_seed": 1}):
        other = dataclasses.replace(arm, recipe=RECIPE.replace(**change))
        assert group_key(other) != group_key(arm)


def test_training_draws_from_no_global_generator(cache: ActivationCache) -> None:
    arms, random = small_arms(), torch.get_rng_state()
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
    arms = small_arms()
    expected = alone(arms, cache)
    breaking = Arm(BreakingSAE, D_SAE, RECIPE)
    ended: list[Trained] = []
    found = train([breaking, *arms], cache, device="cpu", finished=ended.append)
    same(found[1:], expected)
    assert found[0].reason == "RuntimeError: cannot go on"
    assert len(found[0].history) == 3
    assert ended[0] is found[0]
    assert {id(trained) for trained in ended} == {id(trained) for trained in found}


class UnbuildableSAE(SparseAutoencoder):
    """Raises before it exists."""

    def initial(self, generator: torch.Generator) -> Any:
        raise MemoryError("too wide")


def test_an_arm_that_cannot_be_built_ends_alone(cache: ActivationCache) -> None:
    arms = small_arms()[:2]
    ended: list[Trained] = []
    broken = Arm(UnbuildableSAE, D_SAE, RECIPE)
    found = train([arms[0], broken, arms[1]], cache, device="cpu", finished=ended.append)
    same([found[0], found[2]], alone(arms, cache))
    assert found[1].reason == "MemoryError: too wide"
    assert len(ended) == 3
    (nothing,) = train([broken], cache, device="cpu")
    assert nothing.sae is None


def test_an_arm_that_diverges_ends_alone(cache: ActivationCache) -> None:
    arms = small_arms()
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
    arms, found = small_arms(), []
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
