import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from sae_bench.components import subclasses
from sae_bench.errors import InputError
from sae_bench.kernels import Epanechnikov, Gaussian, Kernel, Rectangle, Triangle

KERNELS = [cls for cls in subclasses(Kernel) if cls.__module__.startswith("sae_bench.")]
TABLE = {  # R, mu2, m1 as published, to their printed digits
    Rectangle: (1.0, 1 / 12, 1 / 8),
    Triangle: (2 / 3, 1 / 6, 1 / 6),
    Epanechnikov: (3 / 5, 1 / 5, 3 / 16),
    Gaussian: (0.2821, 1.0, 0.3989),
}


def integral(function, low: float, high: float) -> float:  # type: ignore[no-untyped-def]
    return quad(function, low, high, points=[-1, -0.5, 0, 0.5, 1], limit=200)[0]


def density(kernel: Kernel, u: float) -> float:
    return kernel.density(torch.tensor(u, dtype=torch.float64)).item()


@pytest.mark.parametrize("cls", KERNELS, ids=lambda cls: cls.__name__)
def test_constants_by_numeric_integration(cls: type[Kernel]) -> None:
    kernel, end = cls(), min(cls.support, 12.0)
    assert integral(lambda u: density(kernel, u), -end, end) == pytest.approx(1, abs=1e-7)
    roughness = integral(lambda u: density(kernel, u) ** 2, -end, end)
    variance = integral(lambda u: u * u * density(kernel, u), -end, end)
    half_mean = integral(lambda u: u * density(kernel, u), 0, end)
    assert (roughness, variance, half_mean) == pytest.approx(
        (cls.roughness, cls.variance, cls.half_mean), abs=1e-7
    )
    assert TABLE[cls] == pytest.approx((roughness, variance, half_mean), abs=1e-4)


@pytest.mark.parametrize("cls", KERNELS, ids=lambda cls: cls.__name__)
def test_support_is_the_last_place_with_weight(cls: type[Kernel]) -> None:
    if math.isinf(cls.support):
        assert density(cls(), 20.0) > 0
        return
    for side in (-1, 1):
        assert density(cls(), side * cls.support * 0.999) > 0
        assert density(cls(), side * cls.support * 1.001) == 0


@given(st.sampled_from(KERNELS), st.floats(1e-4, 1e2), st.floats(-3, 3))
def test_a_window_is_the_density_divided_by_the_bandwidth_once(
    cls: type[Kernel], bandwidth: float, u: float
) -> None:
    distance = torch.tensor(u, dtype=torch.float64) * bandwidth
    kernel = cls(bandwidth)
    expected = density(kernel, (distance / bandwidth).item()) / bandwidth
    assert kernel.window(distance).item() == pytest.approx(expected, rel=1e-12)
    assert kernel.window(-distance).item() == kernel.window(distance).item()


@given(st.sampled_from(KERNELS), st.floats(1e-3, 1e3))
def test_a_window_has_unit_integral_at_any_bandwidth(cls: type[Kernel], bandwidth: float) -> None:
    grid = torch.linspace(-10, 10, 40_001, dtype=torch.float64) * bandwidth
    total = torch.trapezoid(cls(bandwidth).window(grid), grid).item()
    assert total == pytest.approx(1, abs=1e-3)


@given(st.sampled_from(KERNELS), st.floats(1e-3, 1e3))
def test_of_width_sets_the_standard_deviation(cls: type[Kernel], width: float) -> None:
    kernel = cls.of_width(width)
    assert isinstance(kernel, cls)
    assert kernel.bandwidth * math.sqrt(cls.variance) == pytest.approx(width)


@pytest.mark.parametrize("cls", KERNELS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_is_a_positive_number(cls: type[Kernel], bandwidth: float) -> None:
    with pytest.raises(InputError, match=rf"{cls.__name__}: the bandwidth must be positive"):
        cls(bandwidth)
