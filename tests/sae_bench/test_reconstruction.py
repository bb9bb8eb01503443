"""Every metric against a slow computation in numpy, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from architectures import JumpReLUSAE
from sae_bench import reconstruction
from sae_bench.activations import JumpReLU, RawThreshold
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L1
from sae_bench.reconstruction import Moments, measure
from sae_bench.sae import SparseAutoencoder
from tests.grids import (
    constant_sae,
    identity_sae,
    lm_cache,
    random_saes,
    state_of,
    tensor_cache,
)
from tests.tiny import tiny_model

CACHE = tensor_cache(rows=300, held_out=0.0)
X = torch.cat(list(CACHE.chunks(1000)))


def slow(sae: SparseAutoencoder) -> dict[str, float | np.ndarray]:
    """The definitions, in loops over tokens and latents."""
    with torch.no_grad():
        f = sae.encode(X).numpy().astype(np.float64)
        x_hat = sae(X).numpy().astype(np.float64)
    x = X.numpy().astype(np.float64)
    n, d_sae = f.shape
    mean = sum(x) / n
    error = sum(((x[t] - x_hat[t]) ** 2).sum() for t in range(n))
    variance = sum(((x[t] - mean) ** 2).sum() for t in range(n))
    l0 = [sum(1 for i in range(d_sae) if f[t, i] > 0) for t in range(n)]
    rate = [sum(1 for t in range(n) if f[t, i] > 0) / n for i in range(d_sae)]
    return {
        "tokens": n,
        "l0": sum(l0) / n,
        "l0_std": np.sqrt(sum((count - sum(l0) / n) ** 2 for count in l0) / n),
        "fvu": error / variance,
        "gamma": sum(a @ a for a in x_hat) / sum(a @ b for a, b in zip(x_hat, x, strict=True)),
        "dead": sum(p == 0 for p in rate) / d_sae,
        "above_1pct": sum(p > 0.01 for p in rate) / d_sae,
        "above_10pct": sum(p > 0.1 for p in rate) / d_sae,
        "l0_share_above_10pct": sum(p for p in rate if p > 0.1) / sum(rate),
        "frequency": np.array(rate),
    }


@pytest.mark.parametrize("sae", random_saes(8), ids=lambda sae: type(sae).__name__)
def test_every_metric(sae: SparseAutoencoder) -> None:
    (measured,) = measure([sae], CACHE)
    wanted = slow(sae)
    others = {"fvu_low", "fvu_high", "documents", "theta_over_eps", "theta_at_0"}
    assert set(measured) == {*wanted, *others}
    for name, value in wanted.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-5, err_msg=name)
    assert measured["fvu_low"] < measured["fvu"] < measured["fvu_high"]


def test_the_cases_are_not_trivial() -> None:
    """Somewhere there are dead latents, rare ones and frequent ones."""
    rates = np.concatenate([row["frequency"] for row in measure(random_saes(8), CACHE)])
    for low, high in ((-1, 0), (0, 0.1), (0.1, 1)):
        assert ((low < rates) & (rates <= high)).any()


def test_how_far_trained_thresholds_have_fallen() -> None:
    """In units of the window's width; SAEs without trained thresholds have none."""
    sae = JumpReLUSAE(
        8, 5, activation=JumpReLU(RawThreshold(1.0)), kernel=Rectangle(0.2), penalty=L1(0.1)
    )
    with torch.no_grad():
        sae.get_parameter("raw_threshold").copy_(torch.tensor([0.0, 0.001, 0.1, 0.4, 2.0]))
    (before,), (row,) = measure([sae], CACHE), measure([sae.fold_(3.0)], CACHE)
    assert row["theta_over_eps"] == pytest.approx(0.5)
    assert row["theta_at_0"] == pytest.approx(0.4)
    assert before["theta_over_eps"] == pytest.approx(0.5)
    (none,) = measure([identity_sae(8)], CACHE)
    assert np.isnan(none["theta_over_eps"])
    assert np.isnan(none["theta_at_0"])


def test_predicting_the_mean_has_fvu_one() -> None:
    mean = X.double().mean(0).float()
    (row,) = measure([constant_sae(mean)], CACHE)
    assert row["fvu"] == pytest.approx(1, abs=1e-12)
    assert row["l0"] == 0
    assert row["dead"] == 1
    assert row["gamma"] == pytest.approx(1, rel=1e-6)
    assert np.isnan(row["l0_share_above_10pct"])


def test_a_perfect_sae_has_fvu_zero() -> None:
    (row,) = measure([identity_sae(8)], CACHE)
    assert row["fvu"] == 0
    assert row["gamma"] == 1
    assert row["l0"] == 8
    assert (row["fvu_low"], row["fvu_high"]) == (0, 0)


def test_a_silent_sae_has_no_gamma() -> None:
    (row,) = measure([constant_sae(torch.zeros(8))], CACHE)
    assert np.isnan(row["gamma"])


@pytest.mark.parametrize("chunk", [1, 7, 299, 300, 5000])
def test_the_chunk_size_does_not_matter(chunk: int) -> None:
    for sae in random_saes(8):
        (one,), (other,) = measure([sae], CACHE), measure([sae], CACHE, chunk)
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)


def test_moments_are_those_of_the_raw_rows() -> None:
    moments = Moments.of(CACHE, 64)
    np.testing.assert_allclose(moments.mean, X.double().mean(0), rtol=1e-12)
    wanted = ((X.double() - X.double().mean(0)) ** 2).sum(1)
    np.testing.assert_allclose(moments.deviation, wanted, rtol=1e-9)


def test_many_saes_are_measured_as_one() -> None:
    saes = random_saes(8)
    for sae, together in zip(saes, measure(saes, CACHE), strict=True):
        (alone,) = measure([sae], CACHE)
        for name in alone:
            np.testing.assert_array_equal(alone[name], together[name])


def test_measuring_changes_nothing() -> None:
    for sae in random_saes(8):
        sae.train()
        before = state_of(sae)
        measure([sae], CACHE)
        assert state_of(sae) == before
        assert sae.training
        assert all(parameter.grad is None for parameter in sae.parameters())


def test_a_double_precision_sae_is_measured_too() -> None:
    for sae in random_saes(8):
        (single,), (double,) = measure([sae], CACHE), measure([sae.double()], CACHE)
        assert double["fvu"] == pytest.approx(single["fvu"], rel=1e-5)


def test_intervals_are_over_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = lm_cache(tiny_model("llama"), tmp_path).held_out
    assert cache is not None
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def recorded(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
        seen.append((numerator, denominator))
        return 0.0, 1.0

    monkeypatch.setattr(reconstruction, "bootstrap_ratio", recorded)
    sae = random_saes(cache.d_in)[0]
    measure([sae], cache)
    x = torch.cat(list(cache.chunks(1000))).double()
    with torch.no_grad():
        error = (x - sae(x.float()).double()).square().sum(1).numpy()
    deviation = (x - x.mean(0)).square().sum(1).numpy()
    documents = cache.columns().document
    names = sorted(set(documents.tolist()))
    assert len(names) > 2
    for found, values in zip(seen[0], (error, deviation), strict=True):
        wanted = [values[documents == name].sum() for name in names]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
