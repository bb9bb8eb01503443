import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.errors import InputError
from sae_bench.recipe import Recipe


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe(tokens=8_000_000_000)
    assert (recipe.lr, recipe.betas, recipe.adam_eps) == (7e-5, (0.0, 0.999), 1e-8)
    assert (recipe.batch_size, recipe.lr_warmup, recipe.penalty_warmup) == (4096, 1000, 10_000)
    assert recipe.steps == 1_953_125


def test_learning_rate_rises_on_a_cosine_from_a_tenth() -> None:
    recipe = Recipe(tokens=10_000, batch_size=1, lr_warmup=1000)
    assert recipe.lr_factor(0) == pytest.approx(0.1, abs=1e-4)
    assert recipe.lr_factor(499) == pytest.approx(0.55)
    assert recipe.lr_factor(249) == pytest.approx(0.1 + 0.45 * (1 - math.sqrt(0.5)))
    assert [recipe.lr_factor(step) for step in (999, 1000, 9_999)] == [1.0, 1.0, 1.0]


def test_learning_rate_falls_in_a_straight_line_to_almost_nothing() -> None:
    recipe = Recipe(tokens=100, batch_size=1, lr_warmup=0, lr_decay=19)
    factors = [recipe.lr_factor(step) for step in range(100)]
    assert factors[:81] == [1.0] * 81
    assert factors[80:] == pytest.approx([1 - i / 20 for i in range(20)])
    assert factors[-1] == pytest.approx(1 / 20)
    assert Recipe(tokens=10_000, batch_size=1, lr_decay=2_000).lr_factor(9_999) < 1e-3


def test_without_warm_ups_everything_is_full_from_the_start() -> None:
    recipe = Recipe(tokens=10, batch_size=1, lr_warmup=0, penalty_warmup=0)
    assert recipe.lr_factor(0) == recipe.sparsity_scale(0) == 1.0


def test_the_penalty_rises_in_a_straight_line_from_nothing() -> None:
    recipe = Recipe(tokens=10, batch_size=1, penalty_warmup=4)
    assert [recipe.sparsity_scale(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


@given(st.integers(1, 300), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_factors_stay_between_zero_and_one(steps: int, warm: int, decay: int, rise: int) -> None:
    recipe = Recipe(tokens=steps, batch_size=1, lr_warmup=warm, lr_decay=decay, penalty_warmup=rise)
    for step in range(steps):
        assert 0 < recipe.lr_factor(step) <= 1
        assert 0 <= recipe.sparsity_scale(step) <= 1


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_steps_are_whole_batches(tokens: int, batch_size: int) -> None:
    if tokens < batch_size:
        with pytest.raises(InputError, match="is fewer than one batch"):
            Recipe(tokens, batch_size)
    else:
        steps = Recipe(tokens, batch_size).steps
        assert steps * batch_size <= tokens < (steps + 1) * batch_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 5}, "tokens = 5 is fewer than one batch of 10; raise tokens or lower batch_"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"lr": math.nan}, "lr must be a positive number"),
        ({"lr": math.inf}, "lr must be a positive number"),
        ({"threshold_lr": -1.0}, "threshold_lr must be a positive number"),
        ({"adam_eps": 0.0}, "adam_eps must be a positive number"),
        ({"clip": 0.0}, "clip must be a positive number"),
        ({"lr_warmup": -1}, "lr_warmup must not be negative, got -1"),
        ({"lr_decay": -1}, "lr_decay must not be negative"),
        ({"penalty_warmup": -1}, "penalty_warmup must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, "betas must be two numbers"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^Recipe: {message}"):
        Recipe(**{"tokens": 100, "batch_size": 10, **changes})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", 1e6, "Recipe.tokens: expected an integer, got 1000000.0"),
        ("batch_size", "64", "Recipe.batch_size: expected an integer, got '64'"),
        ("betas", (0.9,), r"Recipe.betas: expected a tuple \(a number, a number\), got \(0.9,\)"),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: Any, message: str) -> None:
    recipe = Recipe(tokens=100, batch_size=10)
    object.__setattr__(recipe, name, value)
    with pytest.raises(InputError, match=message):
        recipe.__post_init__()
