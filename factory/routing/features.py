"""Cheap facts about a prompt, the router's only input besides the endpoint.

features = extract([("user", "Prove that ...")], prompt_tokens=12, patterns=compiled)
features.matched    # the configured patterns that a user turn matches
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Features:
    """What the rules look at."""

    prompt_tokens: int
    """Length of the whole prompt, in tokens of the first model that would see it."""
    characters: int
    """Length of all turns, in characters."""
    turns: int
    """Number of messages."""
    matched: tuple[str, ...]
    """The `routing.hard_patterns` that at least one user turn matches."""


def extract(
    turns: Sequence[tuple[str, str]], prompt_tokens: int, patterns: Sequence[re.Pattern[str]]
) -> Features:
    """Features of a conversation given as `(role, text)` pairs.

    Patterns are searched in user turns only: a system prompt is the same for every request.
    """
    asked = [text for role, text in turns if role == "user"]
    return Features(
        prompt_tokens=prompt_tokens,
        characters=sum(len(text) for _, text in turns),
        turns=len(turns),
        matched=tuple(p.pattern for p in patterns if any(p.search(text) for text in asked)),
    )
