"""Shape: how many texts, how long, how long without a space, and characters nobody types.

Shape(ShapeFilter(filter="shape")).look(["\\x00"])   # one CONTROL_CHARACTER
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from factory.config import ShapeFilter
from factory.gateway.guard.findings import Span

# White space of documents is allowed, and so are the joiners and marks that Persian, Indic and
# Hebrew text and emoji need. Overrides can make a text read otherwise than it is [1]; tag
# characters are invisible ASCII, in use only after the black flag (England, Scotland, Wales).
# [1] Boucher and Anderson, Trojan Source, 2021.
_ODD = re.compile(
    "(?P<BIDI_OVERRIDE>[\u202d\u202e])"
    "|\U0001f3f4[\U000e0061-\U000e007a]{2,6}\U000e007f"
    "|(?P<TAG_CHARACTER>[\U000e0000-\U000e007f])"
    "|(?P<CONTROL_CHARACTER>[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f])"
)
_WORD_LABEL = "LONG_WORD"


class Shape:
    """Finds texts that are too large or oddly made."""

    labels = frozenset(
        {
            "TOO_MANY_MESSAGES",
            "TOO_LONG",
            _WORD_LABEL,
            "BIDI_OVERRIDE",
            "TAG_CHARACTER",
            "CONTROL_CHARACTER",
        }
    )
    repeats = False

    def __init__(self, config: ShapeFilter) -> None:
        self._config = config

    def look(self, texts: Sequence[str]) -> list[tuple[int, Span]]:
        """At most one span of each kind; the size is judged first and alone when it is wrong."""
        config = self._config
        if len(texts) > config.max_messages:
            note = f"{len(texts)} texts, at most {config.max_messages}"
            return [(-1, Span("TOO_MANY_MESSAGES", 0, 0, 1.0, note))]
        total = sum(map(len, texts))
        if total > config.max_characters:
            note = f"{total} characters, at most {config.max_characters}"
            return [(-1, Span("TOO_LONG", 0, total, 1.0, note))]
        found: list[tuple[int, Span]] = []
        for index, text in enumerate(texts):
            word = self._long_word(text)
            if word is not None:
                found.append((index, word))
            if config.control_characters:
                found += ((index, span) for span in _odd(text))
        return found

    def _long_word(self, text: str) -> Span | None:
        limit = self._config.max_word_characters
        if len(text) <= limit:
            return None
        longest = max(text.split(), key=len, default="")
        if len(longest) <= limit:
            return None
        start = text.find(longest)
        note = f"{len(longest)} characters without white space, at most {limit}"
        return Span(_WORD_LABEL, start, start + len(longest), 1.0, note)


def _odd(text: str) -> list[Span]:
    if text.isascii() and text.isprintable():
        return []
    first: dict[str, Span] = {}
    for match in _ODD.finditer(text):
        label = match.lastgroup
        if label is not None and label not in first:
            note = f"U+{ord(match.group()):04X}"
            first[label] = Span(label, match.start(), match.end(), 1.0, note)
    return list(first.values())
