"""The run-time type checker of the tests: beartype, which also checks jaxtyping's shapes."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float too


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks arguments and result at each call. (`typing.Self` needs a decorated class, which the
    import hook does not give: such functions stay unchecked.)"""
    try:
        return _beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
