"""Conformance suites: many small named checks, for built-ins and yours alike."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

from sae_bench.errors import InputError, counted

T = TypeVar("T")


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

    def __call__(self, check: Callable[[T], None]) -> Callable[[T], None]:
        """Adds a check; use as a decorator."""
        self.checks.append(check)
        return check

    def named(self, thing: T) -> Iterator[tuple[str, Callable[[], None]]]:
        """Every check by name, ready to be called: for `pytest.mark.parametrize`, say."""
        for check in self.checks:
            yield check.__name__, partial(check, thing)

    def failures(self, thing: T) -> dict[str, str]:
        """Name -> message of each check that `thing` fails."""
        found = {}
        for name, check in self.named(thing):
            try:
                check()
            except Exception as error:  # a check that cannot run has failed
                kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                found[name] = kind + " ".join(str(error).split())
        return found

    def run(self, thing: T) -> None:
        """Runs all checks.

        Raises:
            InputError: the thing is not of this kind.
            AssertionError: checks failed; one line each, saying what to do.
        """
        if not self.belongs(thing):
            raise InputError(f"{thing!r:.60} is no {self.kind}")
        if found := self.failures(thing):
            lines = [f"{name}: {message}" for name, message in found.items()]
            raise AssertionError("\n".join([f"{counted(len(found), 'check')} failed", *lines]))
