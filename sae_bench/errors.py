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


def one_line(error: Exception) -> str:
    """An error in one line: its kind and its text."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class DamagedFileError(InputError):
    """A file of ours that is not as it was written."""
