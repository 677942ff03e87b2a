"""Prompt features."""

from __future__ import annotations

import re

from factory.routing.features import extract


def test_patterns_are_searched_in_user_turns_only():
    patterns = [re.compile("prove"), re.compile("(?i)sum")]
    turns = [("system", "never prove"), ("user", "the SUM"), ("assistant", "prove")]
    features = extract(turns, 9, patterns)
    assert features.matched == ("(?i)sum",)
    assert (features.prompt_tokens, features.turns, features.characters) == (9, 3, 23)
