"""Define the exception for what a user can correct."""


class UserError(Exception):
    """Say what the user can correct.

    The message is one sentence that says what is wrong, where (file, line, value) and what to do about it.
    Scripts print it without a traceback and exit with code 1; code that calls `run()` from Python catches it.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of a library's exception, or its kind, for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
