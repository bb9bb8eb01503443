"""What training stopped and resumed is held against."""

import pytest

from sae_bench.cache import ActivationCache
from sae_bench.train import Trained, train
from tests.small import small_cache
from tests.stops import ARMS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process here is killed so hard that files need to reach the disk."""
    monkeypatch.setattr("sae_bench.files.os.fsync", lambda _: None)


@pytest.fixture(scope="session")
def cache() -> ActivationCache:
    return small_cache()


@pytest.fixture(scope="session")
def expected(cache: ActivationCache) -> list[Trained]:
    """What the arms become undisturbed."""
    found = train(ARMS, cache, device="cpu")
    assert [trained.reason is None for trained in found] == [True] * (len(ARMS) - 1) + [False]
    return found
