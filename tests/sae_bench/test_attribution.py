"""r_L0: closed forms, and gradients against finite differences of full passes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.attribution import attribution, prediction_gradient, relative_l0
from sae_bench.cache import ActivationCache
from sae_bench.models import LanguageModel
from sae_bench.sites import resolve_site, resume_at
from sae_bench.splicing import TextBatch, text_batches
from tests.grids import constant_sae, lm_cache, random_saes
from tests.tiny import FAMILIES, tiny_model

TOKENS = 120
STEP = 3e-3


def test_equal_parts_give_one_and_tokens_without_any_are_left_out() -> None:
    y = torch.tensor([[0.0, 3.0, 0.0], [2.0, -2.0, 2.0], [0.0, 0.0, 0.0], [0.0, -1.0, 1.0]])
    found = relative_l0(y)
    assert found[2].isnan()
    torch.testing.assert_close(found[[0, 1, 3]], torch.ones(3))


def test_unequal_parts_have_the_closed_form() -> None:
    """p = (3/4, 1/4): H = 2 log 2 - 3/4 log 3."""
    found = relative_l0(torch.tensor([[3.0, -1.0, 0.0]]).double()).item()
    assert found == pytest.approx(4 / 3**0.75 / 2, rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_it_lies_between_the_bounds_and_knows_no_scale(values: list[float], scale: float) -> None:
    y = torch.tensor([values]).double()
    active = int((y != 0).sum())
    found = relative_l0(y).item()
    if active == 0:
        assert np.isnan(found)
    else:
        assert 1 / active - 1e-9 <= found <= 1 + 1e-9
        assert relative_l0(-scale * y).item() == pytest.approx(found, rel=1e-6)


def prediction(batch: TextBatch, logits: Tensor) -> Tensor:
    """The sum over scored positions, one position after the other."""
    total = torch.zeros((), dtype=torch.float64)
    for row, t in batch.scored.nonzero().tolist():
        here = logits[row, t].double()
        total += here[batch.ids[row, t + 1]] - here.mean()
    return total


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "attn_z"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_finite_difference(family: str, kind: str, tmp_path: Path) -> None:
    """In float64 (but for the norms, which some models keep in float32), along random directions at
    single positions."""
    lm = tiny_model(family)
    cache = lm_cache(lm, tmp_path)
    lm.model.double()
    site = resolve_site(lm, f"layers.1.{kind}")
    batch = next(text_batches(cache, lm, TOKENS, 64))
    passed = resume_at(lm, batch.ids, batch.mask, site)
    gradient = prediction_gradient(batch, passed)
    generator = torch.Generator().manual_seed(0)
    for position in (2, 5, 9):
        direction = torch.zeros_like(passed.activations)
        direction[0, position] = torch.randn(
            direction.shape[-1], generator=generator, dtype=direction.dtype
        )
        with torch.no_grad():
            up, down = (
                prediction(batch, passed.logits_with(passed.activations + step * direction))
                for step in (STEP, -STEP)
            )
        expected = (up - down) / (2 * STEP)
        assert expected.abs() > 5e-3
        torch.testing.assert_close(
            (gradient * direction).sum().double(), expected, rtol=5e-3, atol=1e-3
        )


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(FAMILIES[0])


@pytest.fixture(scope="module")
def cache(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return lm_cache(lm, tmp_path_factory.mktemp("attribution"))


def test_it_is_the_mean_over_tokens_of_each_sae_alone(
    cache: ActivationCache, lm: LanguageModel
) -> None:
    saes = random_saes(cache.d_in)[:2]
    together = attribution(saes, cache, lm, TOKENS)
    assert cache.site is not None
    for sae, row in zip(saes, together, strict=True):
        values: list[float] = []
        for batch in text_batches(cache, lm, TOKENS, 1024):
            passed = resume_at(lm, batch.ids, batch.mask, resolve_site(lm, cache.site))
            g = prediction_gradient(batch, passed)
            for place in batch.counted.nonzero().tolist():
                f = sae.encode(passed.activations[place[0], place[1]][None])[0].detach()
                y = torch.stack(
                    [f[i] * (sae.W_dec[i] @ g[place[0], place[1]]) for i in f.nonzero()[:, 0]]
                )
                if y.any():
                    values.append(relative_l0(y.detach().double()[None]).item())
        assert row["r_l0_tokens"] == len(values)
        assert row["r_l0"] == pytest.approx(np.mean(values), rel=1e-4)
        assert attribution([sae], cache, lm, TOKENS) == [pytest.approx(row, nan_ok=True)]


def test_an_sae_that_never_fires_has_none(cache: ActivationCache, lm: LanguageModel) -> None:
    (row,) = attribution([constant_sae(torch.zeros(cache.d_in))], cache, lm, TOKENS)
    assert row["r_l0_tokens"] == 0
    assert np.isnan(row["r_l0"])
