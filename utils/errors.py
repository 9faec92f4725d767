"""Define the exception for what a user can correct."""

import reprlib

LONGEST_SENTENCE = 2000
"""Characters of an error's sentence."""
LONGEST_SHOWN = 200
"""Characters of a value in a message."""


class UserError(Exception):
    """Say what the user can correct.

    The message is one sentence that says what is wrong, where (file, line, value) and what to do about it.
    Scripts print it without a traceback and exit with code 1; code that calls `run()` from Python catches it.
    What a file holds may be in it, so it is kept on one line and below LONGEST_SENTENCE characters.
    """

    def __init__(self, sentence: str) -> None:
        line = " ".join(sentence.splitlines())
        if len(line) > LONGEST_SENTENCE:  # the remedy is at its end
            line = f"{line[: LONGEST_SENTENCE - 305]} ... {line[-300:]}"
        super().__init__(line)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's exception, or its kind, for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LONGEST_SHOWN
        self.maxlevel = self.maxdict = 4
        self.maxlist = self.maxtuple = 12

    def repr_int(self, x: int, level: int) -> str:
        """Return a whole number, or its length where Python would refuse to write it."""
        return str(x) if x.bit_length() < 200 else f"a number of {x.bit_length()} bits"


def shown(value: object) -> str:
    """Return a value of unknown size as a message shows it, in one short line.

    >>> shown("cat"), shown([1, [2]]), shown(10**5000)
    ("'cat'", '[1, [2]]', 'a number of 16610 bits')
    """
    text = _Short().repr(value).replace("\n", " ")
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
