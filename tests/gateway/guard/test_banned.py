"""Banned patterns: found wherever they are, and unable to hold up the gateway."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from factory.config import BannedFilter
from factory.gateway.guard.banned import Banned


def test_all_matches_with_the_number_of_their_pattern_and_never_their_text():
    found = Banned(["(?i)project falcon", r"\bX-\d+\b"]).look(["Project Falcon", "é X-12, X-3"])
    assert [(index, span.start, span.end, span.note) for index, span in found] == [
        (0, 0, 14, "pattern 1"),
        (1, 2, 6, "pattern 2"),
        (1, 8, 11, "pattern 2"),
    ]


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){20}$"])
def test_a_pattern_that_backtracks_elsewhere_is_linear_here(pattern):
    Banned([pattern]).look(["a" * 50_000 + "!"])


def test_empty_matches_are_nothing():
    assert Banned(["a*"]).look(["bbb"]) == []


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(?=secret)", "look-around"),
        (r"(a)\1", "backreferences"),
        ("(", "not a regular expression"),
        (r"\büber\b", r"\\pL"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_configuration(pattern, problem):
    with pytest.raises(ValidationError, match=problem):
        BannedFilter(filter="banned", patterns=(pattern,))
