"""Scorers: does one answer match what was expected?

    score("exact", "Asyncio.", "asyncio", labels)              # True
    score("mentions", "It is the json module", "json", labels) # True: the first label named

A scorer is a pure function of the answer, the expected text and the suite's labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

ScorerName = Literal["exact", "mentions"]

Scorer = Callable[[str, str, Sequence[str]], bool]


def normalise(text: str) -> str:
    """`text` without outer white space and quotes, trailing punctuation, and case."""
    return text.strip().strip("\"'`*").rstrip(".,;:!?").strip("\"'`* \t\r\n").casefold()


@lru_cache(maxsize=64)
def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted((re.escape(label) for label in labels), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", re.IGNORECASE)


def first_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that `answer` names first, as a whole word whatever its case; None if none.

    Where two labels start at the same place (`os`, `os.path`) the longer one is meant.
    """
    if not labels:
        return None
    found = _pattern(tuple(labels)).search(answer)
    if found is None:
        return None
    named = found.group().casefold()
    return next(label for label in labels if label.casefold() == named)


def exact(answer: str, expected: str, labels: Sequence[str]) -> bool:
    """True when answer and expected text are equal after `normalise`."""
    return normalise(answer) == normalise(expected)


def mentions(answer: str, expected: str, labels: Sequence[str]) -> bool:
    """True when the first label that the answer names is the expected one."""
    named = first_label(answer, labels)
    return named is not None and named.casefold() == expected.casefold()


SCORERS: dict[ScorerName, Scorer] = {"exact": exact, "mentions": mentions}


def score(name: ScorerName, answer: str, expected: str, labels: Sequence[str]) -> bool:
    """Score one answer with the scorer `name`."""
    return SCORERS[name](answer, expected, labels)
