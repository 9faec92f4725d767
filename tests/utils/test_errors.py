"""What an exception of a library adds to a sentence."""

from utils.errors import LONGEST_SENTENCE, LONGEST_SHOWN, UserError, first_line, shown


def test_the_first_line_of_what_a_library_says():
    assert first_line(ValueError("\n  bad header\nat 0x7f\n")) == "bad header"
    assert first_line(RuntimeError()) == "RuntimeError"


def test_a_user_error_is_its_sentence():
    assert str(UserError("a.yaml, line 3: nc is 0; write 1")) == "a.yaml, line 3: nc is 0; write 1"


def test_values_of_any_size_are_shown_in_one_short_line():
    for value in ("x" * 10**6, ["a"] * 10**5, {1: {2: {3: {4: {5: 6}}}}}, 16**5000, b"\n" * 500, "a\nb"):
        assert len(shown(value)) <= LONGEST_SHOWN and "\n" not in shown(value)
    assert shown([1, "a", None]) == "[1, 'a', None]"


def test_a_sentence_is_one_line_and_keeps_its_remedy():
    text = str(UserError("a.yaml: found " + "x\n" * 5000 + "; write 1"))
    assert (
        len(text) <= LONGEST_SENTENCE and text.startswith("a.yaml: found x x") and text.endswith("; write 1")
    )
