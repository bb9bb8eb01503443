"""The gradient-noise instrument, held against brute force and against what theory says."""

import math
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from architectures import GatedSAE, TopKSAE
from sae_bench import plots
from sae_bench.activations import JumpReLU, LogThreshold, RawThreshold
from sae_bench.autocorrelation import integrated_variance
from sae_bench.cache import ActivationCache
from sae_bench.cli import main
from sae_bench.errors import InputError
from sae_bench.estimator import Bandwidth, Estimate, KernelEstimator, State
from sae_bench.estimators import BatchKDE, ExactJump, MeanKDE, MomentumKDE, WindowKDE
from sae_bench.kernels import Gaussian, Rectangle
from sae_bench.noise import gradient_noise, reference, standard
from sae_bench.penalties import L0, L1, NoPenalty, Penalty, Tanh, TargetL0
from sae_bench.sae import ESTIMATOR, SparseAutoencoder
from sae_bench.samples import Batch
from sae_bench.side_by_side import SideBySide
from tests.small import D_IN, small_batch, small_sae

THETA, D_SAE = 0.3, 32
WITH_JUMP = {"coefficient": ExactJump()}


@once
def gaussian_cache() -> ActivationCache:
    """Isotropic activations."""
    x = torch.randn(60_000, D_IN, generator=torch.Generator().manual_seed(0))
    return ActivationCache.from_tensor(x, held_out=0)


def folded_sae(cache: ActivationCache, theta: float = THETA) -> SparseAutoencoder:
    """An SAE as it comes from disk, for the cache's raw rows."""
    activation = JumpReLU(LogThreshold(theta))
    sae = SparseAutoencoder(D_IN, D_SAE, activation=activation, penalty=L0(0.05))
    return sae.fold_(cache.scale)


def measure(estimators: list[Any], **options: Any) -> pd.DataFrame:
    """Of the Gaussian cache, all latents in one bucket, by estimator and batch size."""
    cache = options.pop("cache", None) or gaussian_cache()
    sae = options.pop("sae", None) or folded_sae(cache)
    options = {"batch_size": 100, "edges": (0.0,), "device": "cpu", **options}
    return gradient_noise(sae, cache, estimators, **options).set_index(["estimator", "batch_size"])


# -- the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "penalty", [L0(0.1), TargetL0(0.5, 3.0), L1(0.1), Tanh(0.2, 3.0), NoPenalty()]
)
def test_the_reference_is_the_finite_difference(penalty: Penalty) -> None:
    """The loss is really evaluated with theta_i +- h, one latent at a time."""
    h = 0.05
    activation = JumpReLU(RawThreshold(0.3))
    slots = {"activation": activation, "penalty": penalty, "kernel": reference(h)}
    sae = small_sae(SparseAutoencoder, **slots).double()
    x = small_batch(batch=400).double()
    loss = sae.loss(x)
    loss.latents.f.retain_grad()
    loss.total.backward()
    sae.estimate_(loss, 1.0)
    (theta,) = sae.threshold_parameters
    assert theta.grad is not None
    brute = torch.zeros_like(theta)
    with torch.no_grad():
        for latent in range(len(theta)):
            middle = theta[latent].item()
            for sign in (1, -1):
                theta[latent] = middle + sign * h
                brute[latent] += sign * sae.loss(x).total / (2 * h)
            theta[latent] = middle
    assert (brute != 0).all()
    torch.testing.assert_close(theta.grad, brute, rtol=1e-9, atol=1e-9)


# -- many estimators, one pass --------------------------------------------------------------------


def test_side_by_side_is_alone() -> None:
    """Over several steps, each gets the gradient that training with it alone gives."""
    estimators = (*standard(Rectangle(0.3), 3), BatchKDE(Gaussian(0.2)))
    slots = {"activation": JumpReLU(LogThreshold(0.3)), "penalty": L0(0.1)}
    together = small_sae(SparseAutoencoder, kernel=SideBySide(estimators), **slots)
    alone = [small_sae(SparseAutoencoder, kernel=estimator, **slots) for estimator in estimators]
    for step in range(5):
        x = small_batch(step)
        for sae in (together, *alone):
            sae.zero_grad()
            loss = sae.loss(x)
            loss.latents.f.retain_grad()
            loss.total.backward()
            sae.estimate_(loss, 1.0)
        for given, sae in zip(together.get_buffer(ESTIMATOR + "gradient"), alone, strict=True):
            (parameter,), theta = sae.threshold_parameters, sae.threshold
            assert theta is not None
            assert parameter.grad is not None
            torch.testing.assert_close(given * theta, parameter.grad, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Silent(KernelEstimator):
    """A new estimator: never says anything."""

    def estimate(self, state: State, batch: Batch, bandwidth: Bandwidth | None = None) -> Estimate:
        return torch.zeros_like(batch.present.theta), {}


def test_a_new_estimator_works_unchanged() -> None:
    row = measure([Silent(Rectangle(0.2))], steps=60).iloc[0]
    assert row["coefficient"] == "StraightThrough"
    assert row["kernel"] == "Rectangle"
    assert row["variance"] == row["integrated_variance"] == row["hit"] == 0
    assert np.isnan(row["relative_noise"])  # no gradient, no signal
    assert row["in_window"] > 1
    assert row["bias"] == pytest.approx(-row["reference"])
    assert abs(row["reference"]) > 10 * row["reference_se"] > 0


# -- statistics of a series -----------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8, -0.5])
def test_integrated_variance_of_an_autoregression(phi: float) -> None:
    """y_t = phi y_(t-1) + e_t: 1 / (1 - phi)^2, where a step has variance 1 / (1 - phi^2)."""
    length, halves, latents = 32, 64, 200
    noise = np.random.default_rng(0).standard_normal((halves * length + 200, latents))
    y = np.zeros_like(noise)
    for t in range(1, len(y)):
        y[t] = phi * y[t - 1] + noise[t]
    means = y[200:].reshape(halves, length, latents).mean(1)
    found = integrated_variance(means, length)
    assert found.mean() == pytest.approx(1 / (1 - phi) ** 2, rel=0.05)


def test_integrated_variance_of_a_moving_mean() -> None:
    """The difference of two block lengths is free of the bias that plain batch means have."""
    noise = np.random.default_rng(0).standard_normal((8 * 800 + 7, 300))
    moving = sum(noise[lag : lag + 8 * 800] for lag in range(8)) / 8
    means = np.asarray(moving).reshape(800, 8, 300).mean(1)
    plain = 16 * means.reshape(400, 2, 300).mean(1).var(0, ddof=1)
    assert plain.mean() == pytest.approx(1 - 0.164, rel=0.03)
    assert integrated_variance(means, 8).mean() == pytest.approx(1, rel=0.03)


# -- the instrument -------------------------------------------------------------------------------


def one_latent(theta: float) -> tuple[SparseAutoencoder, ActivationCache]:
    """pre = x, standard normal and almost without sampling error; lambda = theta^2, so that the
    true slope p (theta^2 - lambda) is 0."""
    levels = (torch.arange(100_000) + 0.5) / 100_000
    shuffled = torch.randperm(100_000, generator=torch.Generator().manual_seed(0))
    cache = ActivationCache.from_tensor(torch.special.ndtri(levels)[shuffled, None], held_out=0)
    activation = JumpReLU(LogThreshold(theta))
    sae = SparseAutoencoder(1, 1, activation=activation, penalty=L0(theta**2))
    for parameter in (sae.W_dec, sae.W_enc):
        parameter.data.fill_(1)
    return sae.fold_(cache.scale), cache


def test_bias_orders() -> None:
    """Exact jump: eps^2 mu2 / 2 (p J)'' = -theta^2 p eps^2 / 6 here. Straight-through: on top of
    that -2 theta eps m1 (p + theta p'), of first order."""
    theta, kernels = 0.5, [Rectangle(0.2), Rectangle(0.4)]
    sae, cache = one_latent(theta)
    estimators = [make for k in kernels for make in (BatchKDE(k), BatchKDE(k, **WITH_JUMP))]
    options = {"batch_size": 500, "block": 2, "half_width": 0.01}
    table = measure(estimators, sae=sae, cache=cache, **options)
    density = math.exp(-(theta**2) / 2) / math.sqrt(2 * math.pi)
    slope = -theta * density
    assert table["reference"].abs().max() < 1e-4
    for index, kernel in enumerate(kernels):
        through, exact = table["bias"].iloc[2 * index : 2 * index + 2]
        second = -(theta**2) * density * kernel.bandwidth**2 / 6
        first = -2 * theta * kernel.bandwidth * kernel.half_mean * (density + theta * slope)
        assert exact == pytest.approx(second, rel=0.1)
        assert through == pytest.approx(first + second, rel=0.1)


def test_the_coin_flip() -> None:
    """For an isolated latent at theta = sqrt(lambda), straight-through coefficients are +-theta^2,
    exact jumps at most theta eps."""
    sae, cache = one_latent(0.5)
    estimators = [BatchKDE(Rectangle(0.01)), BatchKDE(Rectangle(0.01), **WITH_JUMP)]
    through, exact = measure(estimators, sae=sae, cache=cache, steps=100)["variance"]
    p, tokens = math.exp(-(0.5**2) / 2) / math.sqrt(2 * math.pi), 100
    assert through == pytest.approx(0.5**4 * p / (0.01 * tokens), rel=0.3)
    assert exact < 0.01 * through


def test_memory_lowers_the_noise_of_a_step_not_of_a_path() -> None:
    steps, kernel = 4, Rectangle(0.1)
    estimators = [
        MomentumKDE(kernel, steps=steps),
        MeanKDE(kernel, steps=steps),
        WindowKDE(kernel, steps=steps, slots=64),
    ]
    table = measure(estimators)
    assert list(table["steps"]) == [4, 4, 4, 1, 1]
    assert [size for _, size in table.index] == [100, 100, 100, 100, 400]
    batch = table.iloc[3]
    for row in table.itertuples():
        if row.Index[1] == 400:  # equal samples, used once
            assert row.integrated_variance == pytest.approx(row.variance, rel=0.2)
            assert row.in_window == pytest.approx(steps * batch["in_window"])
        elif row.steps == steps:
            assert row.integrated_variance == pytest.approx(batch["integrated_variance"], rel=0.2)
        if row.Index[1] == 400 or row.steps == steps:
            assert row.variance == pytest.approx(batch["variance"] / steps, rel=0.15)
    assert batch["integrated_variance"] == pytest.approx(batch["variance"], rel=0.2)


def test_the_columns_by_hand() -> None:
    """Frequency, samples in the window, hits, variance: from the pre-activations."""
    cache, eps, block, steps, batch = gaussian_cache(), 0.01, 4, 40, 100
    sae = folded_sae(cache, theta=0.9)
    row = measure([BatchKDE(Rectangle(eps))], sae=sae, steps=steps, block=block, seed=3).iloc[0]
    x = torch.stack([x for x, _ in zip(cache.batches(batch, 3), range(steps), strict=False)])
    pre = x[block:] @ sae.W_enc
    inside = ((pre - 0.9).abs() < eps / 2).sum(1).double()
    assert row["measured"] == steps - block
    assert row["latents"] == D_SAE
    assert row["frequency"] == pytest.approx((pre > 0.9).double().mean().item())
    assert row["in_window"] == pytest.approx(inside.mean().item())
    assert 0 < row["hit"] < 1
    assert row["hit"] == pytest.approx((inside > 0).double().mean().item())


def test_buckets() -> None:
    cache = gaussian_cache()
    sae = folded_sae(cache)
    with torch.no_grad():
        theta = torch.tensor([0.1, 0.9, 9.0]).repeat_interleave(torch.tensor([20, 8, 4]))
        sae.threshold_parameters[0].copy_((theta * cache.scale).log())
    options = {"sae": sae, "edges": (-4.0, -1.0), "steps": 60}
    table = measure([BatchKDE(Rectangle(0.1))], **options).reset_index()
    assert list(table["bucket"]) == ["[-inf, -4.0)", "[-4.0, -1.0)", "[-1.0, inf)"]
    assert list(table["latents"]) == [4, 8, 20]
    silent, rare, frequent = table["frequency"]
    assert silent == 0 < rare < 0.1 < frequent
    assert table["relative_noise"].isna().tolist() == [True, False, False]
    assert table["hit"][0] == table["variance"][0] == 0


def test_units() -> None:
    """Raw activations of another scale, and the SAE folded likewise: the same table."""
    x = torch.randn(8_000, D_IN, generator=torch.Generator().manual_seed(1))
    tables = []
    for factor in (1.0, 64.0):
        cache = ActivationCache.from_tensor(factor * x, held_out=0)
        estimators = standard(Rectangle(0.2), steps=4)
        table = gradient_noise(folded_sae(cache), cache, estimators, batch_size=100, device="cpu")
        tables.append(table.select_dtypes("number"))
    pd.testing.assert_frame_equal(*tables, rtol=1e-2, atol=1e-5)


def test_same_inputs_same_bits_and_nothing_changes() -> None:
    cache = gaussian_cache()
    sae = folded_sae(cache).eval()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    slots = sae.slots
    first, again, other = (
        measure(standard(Rectangle(0.2), 4), sae=sae, steps=60, seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.equals(other)
    assert not sae.training
    assert sae.slots == slots
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


BATCH = [BatchKDE(Rectangle(0.1))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": []}, "each estimator once"),
        ({"estimators": BATCH * 2}, "each estimator once"),
        ({"steps": 47}, "48 are needed"),
        ({"steps": 601}, "at most 600 steps"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"block": 3}, "block even"),
        ({"edges": (-1.0, -2.0)}, "edges must ascend"),
        ({"half_width": 0.0}, "must be positive"),
        ({"estimators": [MeanKDE(Rectangle(0.1), steps=9)]}, "use block=18 or more"),
        ({"sae": GatedSAE(D_IN, 8)}, "GatedSAE has no trainable thresholds"),
        ({"sae": TopKSAE(D_IN, 80)}, "TopKSAE has no trainable thresholds"),
        ({"sae": SparseAutoencoder(5, 8, activation=JumpReLU())}, "width 5"),
    ],
)
def test_wrong_input(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ActivationCache, "batches", lambda *_: pytest.fail("too late"))
    with pytest.raises(InputError, match=message) as caught:
        measure(**{"estimators": BATCH, **options})
    assert "\n" not in str(caught.value)


# -- figure and command ---------------------------------------------------------------------------


def noise_rows(estimator: str, batch_size: int, *points: tuple[float, float]) -> pd.DataFrame:
    frequency, noise = zip(*points, strict=True)
    return pd.DataFrame({"frequency": frequency, "relative_noise": noise}).assign(
        estimator=estimator,
        batch_size=batch_size,
        coefficient="ExactJump" if "Exact" in estimator else "StraightThrough",
    )


def test_the_figure_draws_the_table() -> None:
    table = pd.concat(
        [
            noise_rows("A", 100, (0.1, 1.0), (0.0, 3.0), (0.01, 2.0)),
            noise_rows("A", 400, (0.1, 0.5), (0.01, math.nan)),
            noise_rows("Exact", 100, (0.1, 0.8)),
        ]
    )
    axes = plots.figure().axes[0]
    assert plots.noise(table, axes) is axes
    drawn = {str(line.get_label()): line for line in axes.lines}
    assert list(drawn) == ["A", "A, batch 400", "Exact"]
    assert list(drawn["A"].get_xdata()) == [0.01, 0.1]
    assert list(drawn["A"].get_ydata()) == [2.0, 1.0]
    assert list(drawn["A, batch 400"].get_ydata()) == [0.5]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--"]
    assert len({line.get_color() for line in axes.lines}) == 3
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = gaussian_cache()
    folded_sae(cache).save(tmp_path / "sae")
    monkeypatch.setattr(ActivationCache, "open", lambda *_, **__: cache)
    places = [str(tmp_path / "sae"), "--cache", "kept", "--out", str(tmp_path / "out")]
    options = ["--batch-size", "100", "--steps", "60", "--bandwidth", "0.2", "--memory", "4"]
    command = ["noise", *places, *options, "--device", "cpu"]
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "out" / "noise.csv")
    expected = measure(standard(Rectangle(0.2), 4), steps=60, edges=(-4.0, -3.0, -2.0, -1.0))
    assert list(table["estimator"]) == [label for label, _ in expected.index]
    assert np.allclose(table["variance"], expected["variance"], rtol=1e-6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "noise.csv",
        "noise.png",
        "noise.svg",
    }
    assert "noise.csv" in capsys.readouterr().out
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
