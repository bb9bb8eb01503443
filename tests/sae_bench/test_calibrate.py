import math

import pytest

from sae_bench import calibrate as package_level
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.calibrate import Search, calibrate
from sae_bench.errors import InputError
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1, NoPenalty, TargetL0
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.synthetic import SyntheticFeatures
from sae_bench.train import train

RECIPE = Recipe(
    tokens=40_000,
    batch_size=128,
    lr=3e-3,
    threshold_lr=5e-2,
    lr_warmup=20,
    penalty_warmup=20,
    betas=(0.9, 0.999),
)
TARGETS = [2.0, 6.0]
JUMP = {"activation": JumpReLU(LogThreshold(0.1)), "kernel": Rectangle(0.1)}


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    return SyntheticFeatures(16, 32, 4.0, seed=1).cache(4096, seed=2)


def arm(seed: int = 0, **slots: object) -> Arm:
    return Arm(SparseAutoencoder, 48, RECIPE, seed, slots)


def test_pilots_find_the_coefficients(
    cache: ActivationCache, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started far off; the pilot's recipe with the coefficient found gives the L0."""
    prototypes = [arm(penalty=L1(1e-3)), arm(penalty=L0(0.3), **JUMP)]
    found = calibrate(prototypes, cache, TARGETS, share=0.5, rounds=5, device="cpu")
    assert [a.slots["penalty"].label_without("coefficient") for a in found] == ["L1"] * 2 + [
        "L0"
    ] * 2
    pilots = [Arm(a.architecture, a.d_sae, a.recipe.shortened(0.5), a.seed, a.slots) for a in found]
    for trained, wanted in zip(train(pilots, cache, device="cpu"), TARGETS * 2, strict=True):
        l0 = sum(row["l0"] for row in trained.history[-10:]) / 10
        assert abs(math.log(l0 / wanted)) < math.log(1.15)
    assert all(a.recipe == RECIPE for a in found)
    assert capsys.readouterr().err.count("calibrated ") == 4


def test_seeds_share_a_calibration(cache: ActivationCache) -> None:
    found = calibrate(
        [arm(seed, penalty=L1(0.1)) for seed in (0, 1)], cache, [4.0], rounds=1, device="cpu"
    )
    assert [a.seed for a in found] == [0, 1]
    assert found[0].slots["penalty"] == found[1].slots["penalty"]


def test_what_names_its_l0_needs_no_pilot(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_bench.train.Trainee.step", lambda *_: pytest.fail("was trained"))
    prototypes = [
        arm(activation=TopK(9), penalty=NoPenalty()),
        arm(penalty=TargetL0(1.0, 9.0), **JUMP),
    ]
    found = calibrate(prototypes, cache, TARGETS, device="cpu")
    assert [a.slots["activation"] for a in found[:2]] == [TopK(2), TopK(6)]
    assert [a.slots["penalty"].target for a in found[2:]] == TARGETS


def test_out_of_reach_is_said(cache: ActivationCache) -> None:
    """48 latents cannot give an L0 of 1000: coefficients go on falling, L0 does not rise."""
    with pytest.warns(UserWarning, match=r"no pilot came within .* L0 1000.*saturated"):
        calibrate([arm(penalty=L1(1e-6))], cache, [1000.0], rounds=1, device="cpu")


def test_interpolation_is_exact_on_a_power_law() -> None:
    search = Search(arm(penalty=L1(1.0)), {c: 20 * c**-0.5 for c in (0.01, 1.0, 100.0)})
    for wanted in (500.0, 64.0, 5.0, 1.0):  # beyond both ends, too
        assert search.proposal(wanted) == pytest.approx((20 / wanted) ** 2, rel=1e-3)
    assert search.closest(30.0) == 1.0
    assert search.miss(40.0) == pytest.approx(2.0)
    assert not search.is_flat(500.0)
    assert Search(arm(), {1.0: 40.0, 10.0: 39.0}).is_flat(5.0)


def test_bad_input(cache: ActivationCache) -> None:
    assert package_level is calibrate
    for arms, l0 in (([], [4.0]), ([arm()], []), ([arm()], [0.0])):
        with pytest.raises(InputError, match="calibrate: arms and positive"):
            calibrate(arms, cache, l0)
    with pytest.raises(InputError, match="no threshold"):
        calibrate([arm(penalty=L0(1.0))], cache, [4.0])
