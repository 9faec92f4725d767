"""Values of a YAML against annotations."""

from collections.abc import Sequence

import pytest
from torch import nn

from models.build.values import accepts, kind_of, readable_hint


@pytest.mark.parametrize(
    ("hint", "accepted", "refused"),
    [
        (int, [3], [True, 3.0, "3", None]),
        (float, [3, 0.5], [False, float("nan"), "0.5"]),
        (bool, [True], [1, "True"]),
        (str, ["SiLU"], [3, ["SiLU"]]),
        (int | None, [None, 3], [0.5]),
        (tuple[int, ...], [[3, 5], (7,), []], [3, [3, "5"]]),
        (tuple[int, int], [[3, 5]], [[3], [3, 5, 7]]),
        (Sequence[float], [[0.5, 1]], ["0.5", [None]]),
        (list, [[1, "a"]], ["ab"]),
        (bool | str | nn.Module | None, [nn.ReLU(), "ReLU", True, None], [3]),
        (complex, [3, "anything"], []),
    ],
)
def test_a_value_is_of_the_kind_that_an_annotation_states(hint, accepted, refused):
    assert all(accepts(value, hint) for value in accepted)
    assert not any(accepts(value, hint) for value in refused)


def test_kinds_are_said_in_a_users_words():
    assert [kind_of(v) for v in (None, True, 3, 0.5, "a", [], {})] == [
        *("nothing", "true/false", "number", "number", "text", "list", "mapping")
    ]
    assert readable_hint(float | None) == "a number or None"
    assert readable_hint(bool | str | nn.Module | None) == "True or False or text or None"
    assert readable_hint(tuple[int, ...]) == "a list"
