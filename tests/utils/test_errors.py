"""What an exception of a library adds to a sentence."""

from utils.errors import UserError, first_line


def test_the_first_line_of_what_a_library_says():
    assert first_line(ValueError("\n  bad header\nat 0x7f\n")) == "bad header"
    assert first_line(RuntimeError()) == "RuntimeError"


def test_a_user_error_is_its_sentence():
    assert str(UserError("a.yaml, line 3: nc is 0; write 1")) == "a.yaml, line 3: nc is 0; write 1"
