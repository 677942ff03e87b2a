# ruff: noqa: RUF001 - look-alike letters are what is tested
"""Shape: sizes at their limits, and characters that nobody types."""

from __future__ import annotations

import pytest

from factory.config import ShapeFilter
from factory.gateway.guard.shape import Shape


def labels(texts: list[str], **limits) -> list[str]:
    look = Shape(ShapeFilter(filter="shape", **limits))
    return [span.label for _, span in look.look(texts)]


def test_limits_are_inclusive():
    limits = {"max_messages": 2, "max_characters": 10, "max_word_characters": 5}
    assert labels(["abcde", "abcde"], **limits) == []
    assert labels(["a", "b", "c"], **limits) == ["TOO_MANY_MESSAGES"]
    assert labels(["abcde", "abcde "], **limits) == ["TOO_LONG"]
    assert labels(["a abcdef b"], **limits) == ["LONG_WORD"]


def test_the_long_word_is_located():
    look = Shape(ShapeFilter(filter="shape", max_word_characters=3))
    [(index, span)] = look.look(["abc", "ab abcd"])
    assert (index, span.start, span.end) == (1, 3, 7)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a\x00b", "CONTROL_CHARACTER"),
        ("\x1b[31mred", "CONTROL_CHARACTER"),
        ("x\x9fy", "CONTROL_CHARACTER"),
        ("if admin\u202e {", "BIDI_OVERRIDE"),
        ("hi\U000e0069\U000e0067", "TAG_CHARACTER"),
    ],
)
def test_characters_that_nobody_types(text, label):
    assert labels([text]) == [label]
    assert labels([text], control_characters=False) == []


@pytest.mark.parametrize(
    "text",
    [
        "tabs\tand\r\nlines\x0cand pages\x0b\x85",
        "می‌خواهم क्‍ष 👨‍👩‍👧 \u200fעברית\u200f \ufeffbom",
        "flags 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
        "",
    ],
)
def test_documents_scripts_and_emoji_pass(text):
    assert labels([text]) == []


def test_one_finding_of_a_kind_in_each_text():
    assert labels(["\x00\x01\x02", "\x00"]) == ["CONTROL_CHARACTER"] * 2
