"""Conformance suites: many small named checks, for built-ins and yours alike."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar, cast

from sae_bench.annotations import shown
from sae_bench.components import Component, from_record
from sae_bench.errors import InputError, counted

T = TypeVar("T")
C = TypeVar("C", bound=Component)


class Suite(Generic[T]):
    """A list of checks. Each is a function of the thing checked that raises `AssertionError` with
    what to do; its docstring says what it holds.

    Args:
        kind: what is checked, for messages.
        belongs: whether a thing is of that kind at all.
    """

    def __init__(self, kind: str, belongs: Callable[[object], bool]) -> None:
        self.kind, self.belongs = kind, belongs
        self.checks: list[Callable[[T], None]] = []
        self._first: set[Callable[[T], None]] = set()

    def __call__(self, check: Callable[[T], None]) -> Callable[[T], None]:
        """Adds a check; use as a decorator."""
        self.checks.append(check)
        return check

    def first(self, check: Callable[[T], None]) -> Callable[[T], None]:
        """Adds a check on which those below rest: where it fails, they are not run."""
        self._first.add(check)
        return self(check)

    def named(self, thing: T) -> Iterator[tuple[str, Callable[[], None]]]:
        """Every check by name, ready to be called: for `pytest.mark.parametrize`, say."""
        for check in self.checks:
            yield check.__name__, partial(check, thing)

    def failures(self, thing: T) -> dict[str, str]:
        """Name -> message of each check that `thing` fails, up to the first one that the others
        rest on."""
        found = {}
        for check in self.checks:
            try:
                check(thing)
            except Exception as error:  # a check that cannot run has failed
                found[check.__name__] = _message(error, check)
                if check in self._first:
                    break
        return found

    def run(self, thing: object) -> None:
        """Runs all checks.

        Raises:
            InputError: the thing is not of this kind.
            AssertionError: checks failed; one line each, saying what to do.
        """
        if not self.belongs(thing):
            raise InputError(f"{shown(thing)} is no {self.kind}")
        if found := self.failures(cast(T, thing)):
            lines = [f"{name}: {message}" for name, message in found.items()]
            raise AssertionError("\n".join([f"{counted(len(found), 'check')} failed", *lines]))


class ComponentSuite(Suite[C]):
    """A suite for components of one base."""

    def __init__(self, base: type) -> None:
        super().__init__(f"{base.__name__} object", lambda thing: isinstance(thing, base))
        self(survives_a_record)


def survives_a_record(component: Component) -> None:
    """Its record, through JSON, gives an equal object."""
    record = json.loads(json.dumps(component.record()))
    advice = "make it a frozen dataclass whose fields are plain values or components"
    assert from_record(Component, record) == component, advice


def _message(error: Exception, check: Callable[[Any], None]) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, AssertionError | InputError):
        return text or f"this does not hold: {(check.__doc__ or check.__name__).splitlines()[0]}"
    return f"{type(error).__name__}: {text}".rstrip(": ")
