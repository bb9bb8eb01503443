"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Wrong input: one line that says what is wrong, where, and how to fix it.

    Raised before any expensive work. The command line prints the line and exits with code 2.
    """


def one_line(error: Exception) -> str:
    """An error in one line: its kind and its text."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class DamagedFileError(InputError):
    """A file of ours that is not as it was written."""
