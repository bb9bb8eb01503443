import numpy as np
import pytest
import torch

from sae_bench.components import Component, from_record
from sae_bench.errors import InputError
from sae_bench.synthetic import SyntheticFeatures, recovery


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("mean_l0", [0.5, 8.0, 40.0, 63.0, 64.0])
def test_probabilities_follow_the_law(decay: float, mean_l0: float) -> None:
    p = SyntheticFeatures(16, 64, mean_l0, decay=decay).probabilities()
    assert p.sum().item() == pytest.approx(mean_l0, rel=1e-5)
    assert p.min() > 0
    assert p.max() <= 1
    free = (p < 1).nonzero().flatten()
    expected = p[free[0]] * ((free + 1.0) / (free[0] + 1.0)) ** -decay if len(free) else p[free]
    assert torch.allclose(p[free], expected, rtol=1e-4)


def test_tokens_are_sums_of_their_features() -> None:
    features = SyntheticFeatures(16, 64, 6.0, seed=3, decay=0.5)
    x, codes = features.sample(20_000, seed=1)
    directions = features.directions()
    assert torch.allclose(directions.norm(dim=1), torch.ones(64), atol=1e-6)
    assert torch.equal(x, codes @ directions)
    assert codes.min() == 0
    rates = (codes > 0).float().mean(dim=0)
    p = features.probabilities()
    assert ((rates - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()
    assert codes[codes > 0].square().mean().item() == pytest.approx(1.0, abs=0.02)  # half-normal
    assert codes[codes > 0].mean().item() == pytest.approx(np.sqrt(2 / np.pi), abs=0.01)


def test_noise_has_its_norm() -> None:
    quiet = SyntheticFeatures(16, 8, 2.0)
    x, codes = quiet.replace(noise=0.5).sample(20_000, seed=1)
    clean, same_codes = quiet.sample(20_000, seed=1)
    assert torch.equal(codes, same_codes)
    assert (x - clean).square().sum(dim=1).mean().item() == pytest.approx(0.25, rel=0.02)


def test_seeds_and_records() -> None:
    features = SyntheticFeatures(8, 12, 3.0, seed=1, noise=0.1)
    assert from_record(Component, features.record()) == features
    assert torch.equal(features.sample(10, 5)[0], features.sample(10, 5)[0])
    assert not torch.equal(features.sample(10, 5)[0], features.sample(10, 6)[0])
    assert not torch.equal(features.directions(), features.replace(seed=2).directions())


def test_a_cache_of_them() -> None:
    cache = SyntheticFeatures(8, 12, 3.0).cache(900, seed=2)
    assert cache.rows == 900
    assert cache.held_out is not None
    assert cache.held_out.rows == 100
    assert next(cache.batches(900, seed=0)).square().sum(1).mean().item() == pytest.approx(
        1, rel=1e-5
    )


def test_recovery() -> None:
    directions = SyntheticFeatures(16, 32, 3.0).directions()
    found = recovery(5 * directions[:20].flip(0), directions)
    assert torch.allclose(found[:20], torch.ones(20))
    assert found[20:].max() < 0.95
    assert torch.allclose(recovery(-directions[:1], directions[:1]), -torch.ones(1))


@pytest.mark.parametrize(
    "wrong",
    [{"d_in": 0}, {"n_features": 0}, {"mean_l0": 0.0}, {"mean_l0": 13.0}, {"noise": -1.0}],
)
def test_bad_input(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SyntheticFeatures(**{"d_in": 8, "n_features": 12, "mean_l0": 3.0, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "held_out"), [(0, 0.1), (-1, 0.1), (10, 1.0), (10, -0.1)])
def test_a_cache_of_no_rows(rows: int, held_out: float) -> None:
    with pytest.raises(InputError, match="rows must be a positive integer and held_out a share"):
        SyntheticFeatures(4, 8, 2.0).cache(rows, 0, held_out)
