"""Banned: what a team does not want, by its own regular expressions.

    Banned(["(?i)project falcon"]).look(["About Project Falcon"])    # one BANNED

The patterns come from the configuration and the texts from anyone, so they run in RE2.
"""

from __future__ import annotations

from collections.abc import Sequence

from factory.gateway.guard.findings import Span
from factory.gateway.guard.patterns import compiled


class Banned:
    """Finds a team's patterns."""

    labels = frozenset({"BANNED"})
    repeats = False

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [compiled(pattern) for pattern in patterns]

    def look(self, texts: Sequence[str]) -> list[tuple[int, Span]]:
        """All matches that are not empty; the note says which pattern."""
        return [
            (index, Span("BANNED", match.start(), match.end(), 1.0, f"pattern {number}"))
            for number, pattern in enumerate(self._patterns, start=1)
            for index, text in enumerate(texts)
            for match in pattern.finditer(text)
            if match.end() > match.start()
        ]
