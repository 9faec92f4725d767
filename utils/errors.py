"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something the user can put right.

    The message is one sentence that says what is wrong, where (file, line, value) and what to do about it.
    Scripts print it without a traceback and exit with code 1; code that calls `run()` from Python catches it.
    """
