"""Suites: what stops them, and what they say."""

import pytest

from sae_bench.errors import InputError
from sae_bench.kernels import Rectangle
from sae_bench.penalty_checks import PENALTY
from sae_bench.suite import Suite

NUMBER: Suite[int] = Suite("number", lambda thing: isinstance(thing, int))


@NUMBER.first
def is_not_negative(number: int) -> None:
    """It is at least 0."""
    if number < 0:
        raise AssertionError(f"{number} is below 0")


@NUMBER
def is_small(number: int) -> None:
    """It is below 10."""
    if number >= 10:
        raise AssertionError


@NUMBER
def divides(number: int) -> None:
    """100 can be divided by it."""
    if 100 % number:
        raise AssertionError("no divisor")


def test_what_the_others_rest_on_stops_the_suite() -> None:
    assert NUMBER.failures(-20) == {"is_not_negative": "-20 is below 0"}


def test_no_message_is_empty() -> None:
    assert NUMBER.failures(13) == {
        "is_small": "this does not hold: It is below 10.",
        "divides": "no divisor",
    }
    assert NUMBER.failures(0)["divides"].startswith("ZeroDivisionError: integer")
    assert NUMBER.failures(5) == {}


def test_failures_are_counted_in_english() -> None:
    with pytest.raises(AssertionError, match=r"^1 check failed\nis_not_negative: "):
        NUMBER.run(-1)
    with pytest.raises(AssertionError, match=r"^2 checks failed\n"):
        NUMBER.run(13)


def test_what_is_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"^'seven' is no number$"):
        NUMBER.run("seven")
    with pytest.raises(
        InputError, match=r"the class Rectangle \(write Rectangle\(\.\.\.\)\) is no Penalty object"
    ):
        PENALTY.run(Rectangle)
