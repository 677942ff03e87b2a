"""How much a text is worded like an attack: a logistic regression over its words and word pairs.

    wording(plain)      # 0 to 1; plain is lower case, without quotations where it is about attacks

The rules find known ways of saying it; this finds what is said in similar words. It was fitted on
examples of our own (`injection_fitting.py`), so it knows what they know. Each window of a long text
is looked at by itself; the more windows, the surer one of them must be.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise

WEIGHTS = "injection_weights.json"

WINDOW = 40
"""Words that are looked at together."""

SHORT = 25.0
"""Added in quadrature to the length of a window's tf-idf vector, about 30 for a dozen words: a few
words say little."""

WORD = re.compile(r"\w+")

AT_THRESHOLD = math.log(0.7 / 0.3)
"""Log odds of the score that the default threshold of the filter is."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The fitted model."""

    terms: Mapping[str, tuple[float, float]]
    """By word or pair of words: its inverse document frequency and its weight."""
    unknown: float
    """Inverse document frequency of all other terms: what nobody has seen dilutes what is known."""
    offset: float
    """Added to the weighted sum, such that the default threshold of the filter is at the rate of
    false alarms for which it was fitted."""

    @classmethod
    def parse(cls, raw: str) -> Wording:
        """From the JSON that `injection_fitting` writes."""
        read = json.loads(raw)
        known = {name: (idf, weight) for name, idf, weight in read["terms"]}
        return cls(known, read["unknown"], read["offset"])

    def score(self, plain: str) -> float:
        """0 to 1; at 0.7 the text is as suspicious as the default threshold asks for."""
        found = list(windows(WORD.findall(plain)))
        best = max(map(self.log_odds, found), default=-math.inf)
        odds = best - math.log(max(len(found), 1))
        return 1 / (1 + math.exp(-odds)) if odds > -50 else 0.0

    def log_odds(self, words: Sequence[str]) -> float:
        """Of one window: weighted sum of its normalized tf-idf, plus the offset."""
        total, length = 0.0, 0.0
        for term, count in Counter(terms(words)).items():
            frequency, weight = self.terms.get(term, (self.unknown, 0.0))
            value = (1 + math.log(count)) * frequency
            total += value * weight
            length += value * value
        return total / math.sqrt(length + SHORT**2) + self.offset


def windows(words: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of at most `WINDOW` words, each half over the one before."""
    for start in range(0, max(len(words) - WINDOW // 2, 1), WINDOW // 2):
        if words:
            yield words[start : start + WINDOW]


def terms(words: Sequence[str]) -> Iterator[str]:
    """The words and the pairs of neighbours."""
    yield from words
    yield from map(" ".join, pairwise(words))


@cache
def _model() -> Wording:
    return Wording.parse((resources.files(__package__) / WEIGHTS).read_text("utf-8"))


def wording(plain: str) -> float:
    """The score of the model that ships; see `Wording.score`."""
    return _model().score(plain)
