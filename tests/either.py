"""The sparse path on the CPU, computed by either backend."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sae_bench.backends import BY_DEVICE, LOOPS, OPERATIONS, Backend

BACKENDS = {"loops": LOOPS, "operations": OPERATIONS}


@contextmanager
def computed_by(backend: Backend) -> Iterator[None]:
    """Inside, tensors on the CPU are computed by `backend`."""
    before = BY_DEVICE["cpu"]
    BY_DEVICE["cpu"] = backend
    try:
        yield
    finally:
        BY_DEVICE["cpu"] = before


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def either(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each backend in turn."""
    with computed_by(request.param):
        yield
