"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Wrong input: one line that says what is wrong, where, and how to fix it.

    Raised before any expensive work. The command line prints the line and exits with code 2.
    """


def counted(number: int, noun: str) -> str:
    """`1 arm`, `2 arms`, for messages."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def a(noun: str) -> str:
    """`a Kernel`, `an Estimator`, for messages."""
    return f"{'an' if noun[0] in 'AEIOaeio' else 'a'} {noun}"
