"""The one exception that speaks to the user, and what a library's exception adds to its sentence."""


class UserError(Exception):
    """Something the user can put right.

    The message is one sentence that says what is wrong, where (file, line, value) and what to do about it.
    Scripts print it without a traceback and exit with code 1; code that calls `run()` from Python catches it.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an exception of a library says: the part of it that fits into a sentence."""
    return (str(error).strip().splitlines() or ["no message"])[0]
