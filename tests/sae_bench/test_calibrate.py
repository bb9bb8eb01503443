import math
import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from sae_bench import calibrate as package_level
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.calibrate import Runs, Search, calibrate
from sae_bench.errors import InputError
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0, L1, NoPenalty, TargetL0
from sae_bench.recipe import Recipe
from sae_bench.sae import SparseAutoencoder
from sae_bench.synthetic import SyntheticFeatures
from sae_bench.train import Trained, train

RECIPE = Recipe(
    tokens=20_000,
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


def l0_of(arms: Iterable[Arm], cache: ActivationCache) -> list[float]:
    """L0 at the end of training, measured here."""
    histories = [trained.history for trained in train(arms, cache, device="cpu")]
    return [float(np.mean([row["l0"] for row in history[-10:]])) for history in histories]


def test_full_runs_end_at_the_wanted_l0(
    cache: ActivationCache, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started off by factors, on activations where pilots end elsewhere than full runs."""
    prototypes = [arm(penalty=L1(0.1)), arm(penalty=L0(0.3), **JUMP)]
    found = calibrate(prototypes, cache, TARGETS, device="cpu")
    assert [a.slots["penalty"].label_without("coefficient") for a in found] == ["L1"] * 2 + [
        "L0"
    ] * 2
    assert all(a.recipe == RECIPE for a in found)
    for l0, wanted in zip(l0_of(found, cache), TARGETS * 2, strict=True):
        assert abs(math.log(l0 / wanted)) < math.log(1.1)
    assert capsys.readouterr().err.count("calibrated ") == 4


def test_pilots_alone_miss_it(cache: ActivationCache, capsys: pytest.CaptureFixture[str]) -> None:
    """Without full runs the drift is not known, and that is said."""
    with pytest.warns(UserWarning, match="predicted from pilots, no full run measured"):
        found = calibrate([arm(penalty=L1(0.1))], cache, [3.0], rounds=0, device="cpu")
    assert l0_of(found, cache)[0] < 3.0 / 1.2
    assert "predicted from pilots, no full run measured" in capsys.readouterr().err


def power_law(monkeypatch: pytest.MonkeyPatch) -> list[Arm]:
    """Replaces training: L0 = 40 c^-0.5 of a pilot, 12 c^-0.7 of a full run. Gives a list that
    fills with what was run."""
    ran: list[Arm] = []

    def fake(arms: Iterable[Arm], source: ActivationCache, **_: object) -> list[Trained]:
        ran.extend(new := list(arms))
        results = []
        for a in new:
            c = a.slots["penalty"].coefficient
            l0 = 12 * c**-0.7 if a.recipe == RECIPE else 40 * c**-0.5
            results.append(Trained(a, None, history=[{"l0": l0}]))
        return results

    monkeypatch.setattr(sys.modules["sae_bench.calibrate"], "train", fake)
    return ran


def test_cost_and_report(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three pilots reach both L0s; the first full run of each meets the drift, the second lands."""
    ran = power_law(monkeypatch)
    wide = replace(arm(penalty=L1(1.0)), d_sae=96)
    found = calibrate([wide], cache, [12.0, 60.0], device="cpu")
    assert [a.recipe == RECIPE for a in ran] == [False] * 3 + [True] * 4
    exact = [1.0, (60 / 12) ** (-1 / 0.7)]
    assert [a.slots["penalty"].coefficient for a in found] == pytest.approx(exact, rel=1e-3)
    said = capsys.readouterr().err
    assert "L1 for L0 12: 1, measured: a full run with it ended at L0 12.0\n" in said


def test_full_run_within_tolerance_is_not_repeated(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first full run of 12 gives 2.2: 5.4 times too low, but a tolerance of 6 takes it."""
    ran = power_law(monkeypatch)
    found = calibrate([arm(penalty=L1(1.0))], cache, [12.0], tolerance=6.0, device="cpu")
    full = [a.slots["penalty"].coefficient for a in ran if a.recipe == RECIPE]
    assert len(full) == 1
    predicted = found[0].slots["penalty"].coefficient
    assert predicted < full[0]
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            f"for L0 12: {predicted:.4g}, predicted: the closest full run, with {full[0]:.4g}, "
            f"gave L0 {12 * full[0] ** -0.7:.1f}"
        )
    )


def test_seeds_share_a_calibration(cache: ActivationCache, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = power_law(monkeypatch)
    found = calibrate([arm(seed, penalty=L1(1.0)) for seed in (3, 4)], cache, [12.0], device="cpu")
    assert [a.seed for a in found] == [3, 4]
    assert found[0].slots["penalty"] == found[1].slots["penalty"]
    assert {a.seed for a in ran} == {3}


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
    """48 latents are never on together: coefficients go on falling, L0 does not rise."""
    with pytest.warns(UserWarning, match=r"no full run came within .* L0 48.*saturated"):
        calibrate([arm(penalty=L1(1e-6))], cache, [48.0], rounds=1, device="cpu")


def search(pilots: dict[float, float], full: dict[float, float]) -> Search:
    return Search(Runs(arm(penalty=L1(1.0)), pilots), Runs(arm(penalty=L1(1.0)), full))


def test_interpolation_is_exact_on_a_power_law() -> None:
    pilots = {c: 20 * c**-0.5 for c in (0.01, 1.0, 100.0)}
    known = search(pilots, {})
    for wanted in (500.0, 64.0, 5.0, 1.0):  # beyond both ends, too
        assert known.proposal(wanted) == pytest.approx((20 / wanted) ** 2, rel=1e-3)
        assert search(pilots, {c: l0 / 2 for c, l0 in pilots.items()}).proposal(
            wanted
        ) == pytest.approx((10 / wanted) ** 2, rel=1e-3)
    assert known.pilots.closest(30.0) == 1.0
    assert known.pilots.miss(40.0) == pytest.approx(2.0)
    assert known.full.miss(40.0) == math.inf
    assert not known.is_flat(500.0)


def test_saturated_search_stays_where_it_was_measured() -> None:
    """Pilots that are flat say so until there are two full runs, which then decide."""
    flat, falling = {1.0: 40.0, 10.0: 39.0}, {1.0: 40.0, 10.0: 4.0}
    assert search(flat, {}).is_flat(5.0)
    assert search(falling, flat).is_flat(5.0)
    assert search(falling, flat).coefficient(5.0) == 10.0
    assert not search(flat, falling).is_flat(1.0)
    assert search(flat, falling).coefficient(1.0) > 10.0


def test_curve_goes_through_full_runs_and_on_with_their_slope() -> None:
    """Pilots fall as c^-0.5, full runs, two of them and not where pilots were, as c^-0.8."""
    pilots = {c: 20 * c**-0.5 for c in (0.01, 1.0, 100.0)}
    log_c, log_l0 = search(pilots, {c: 9 * c**-0.8 for c in (0.3, 200.0)}).curve()
    assert np.exp(log_c) == pytest.approx([0.01, 0.3, 1.0, 100.0, 200.0])
    assert np.exp(log_l0) == pytest.approx(9 * np.exp(log_c) ** -0.8)


def test_close_full_run_gives_the_coefficient() -> None:
    known = search({0.1: 40.0, 10.0: 10.0}, {1.0: 16.4, 0.5: 22.0})
    assert known.coefficient(16.0) == 1.0
    assert 0.5 < known.coefficient(19.0) < 1.0


def test_bad_input(cache: ActivationCache) -> None:
    assert package_level is calibrate
    with pytest.raises(InputError, match="no threshold"):
        calibrate([arm(penalty=L0(1.0))], cache, [4.0])
