"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Wrong input: one line that says what is wrong, where, and how to fix it.

    Raised before any expensive work. The command line prints the line and exits with code 2.
    """


class DamagedFileError(InputError):
    """A file of ours that is not as it was written."""
