"""The run-time type checker of the tests: beartype, which also checks jaxtyping's shapes."""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks arguments and result at each call. (`typing.Self` needs a decorated class, which the
    import hook does not give: such functions stay unchecked.)"""
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
