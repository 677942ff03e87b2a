"""What words mean to the guard: base form, synonyms, opposites, rarity. Read once, about 20 ms.

    lexicon = Lexicon.default()
    lexicon.lemma("cancelled"), lexicon.related("buy", "purchase"), lexicon.opposed("buy", "sell")

The data is WordNet's (see `wordnet.py`) and the lists of `words.py`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

from factory.gateway.semantic.words import FUNCTION, OPPOSITES, SYNONYMS

_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "de", "mis", "anti")
_SUFFIXES = (
    *(
        "ized",
        "ised",
        "izes",
        "ises",
        "izing",
        "ising",
        "ization",
        "isation",
        "ations",
        "ation",
        "ment",
        "ments",
        "tions",
        "tion",
        "sion",
        "ance",
    ),
    *("ence", "ities", "ity", "ness", "ally", "al", "ive", "ate", "able", "ible", "ly", "ize"),
    *("ise", "ing", "ed", "es", "ion", "ions", "y", "e", "s"),
)


class Lexicon:
    """Immutable after creation; lookups are dictionary reads."""

    def __init__(
        self,
        synonyms: Iterable[str],
        antonyms: Iterable[str],
        irregular: dict[str, str],
        verbs: frozenset[str],
        modifiers: frozenset[str],
        common: Iterable[str],
    ) -> None:
        """Groups and pairs are words with spaces between; `common` starts with the commonest."""
        groups: dict[str, set[int]] = defaultdict(set)
        for number, line in enumerate(synonyms):
            for word in line.split():
                groups[word].add(number)
        self._groups = {word: frozenset(numbers) for word, numbers in groups.items()}
        self._antonyms = {frozenset(line.split()) for line in antonyms}
        self._irregular = irregular
        self._verbs = verbs
        self._modifiers = modifiers
        self._ranks = {word: rank for rank, word in enumerate(common, start=1)}
        self._known = verbs | modifiers | self._ranks.keys() | groups.keys() | FUNCTION

    @classmethod
    @lru_cache(maxsize=1)
    def default(cls) -> Lexicon:
        """The shipped lexicon."""
        file = resources.files("factory.gateway.semantic").joinpath("lexicon.json")
        raw = json.loads(file.read_text("utf-8"))
        irregular = dict(entry.split(":") for entry in raw["irregular"].split())
        return cls(
            [*raw["synonyms"], *SYNONYMS],
            raw["antonyms"],
            {form: lemma for form, lemma in irregular.items() if form not in _KEEP},
            frozenset(raw["verbs"].split()),
            frozenset(raw["modifiers"].split()),
            raw["common"].split(),
        )

    def knows(self, word: str) -> bool:
        """Whether it is an English word of the lexicon, in any form."""
        return word in self._known or self.lemma(word) in self._known

    def lemma(self, word: str) -> str:
        """The base form of a lower-case word: `cancelled` → `cancel`; itself when unsure."""
        if word in self._irregular:
            return self._irregular[word]
        if len(word) < 4 or word in FUNCTION:
            return word
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if word.endswith("s") and not word.endswith(("ss", "us", "is")):
            if word.endswith("es") and word[:-2] in self._known and word[:-1] not in self._known:
                return word[:-2]
            return word[:-1]
        for ending in ("ing", "ed"):
            if word.endswith(ending) and len(word) > len(ending) + 2:
                stem = word[: -len(ending)]
                for base in (stem + "e", stem, stem[:-1]):
                    if base in self._known and (base != stem[:-1] or stem[-1] == stem[-2]):
                        return base
        return word

    def related(self, first: str, second: str) -> bool:
        """Whether two base forms are the same, synonyms, or one root in two word classes."""
        if first == second:
            return True
        groups = self._groups.get(first)
        if groups is not None and not groups.isdisjoint(self._groups.get(second, frozenset())):
            return True
        root = _root(first)
        return len(root) >= 4 and root == _root(second)

    def opposed(self, first: str, second: str) -> bool:
        """Whether one excludes the other: an antonym, a contrast, or a negating prefix."""
        if first == second:
            return False
        if frozenset((first, second)) in self._antonyms:
            return True
        for number, side in OPPOSITES.get(first, ()):
            if any(number == other and side != end for other, end in OPPOSITES.get(second, ())):
                return True
        short, long = sorted((first, second), key=len)
        return len(short) > 3 and any(long == prefix + short for prefix in _PREFIXES)

    def weight(self, word: str) -> float:
        """Rarity, about 0 to 1: the logarithm of the frequency rank (Zipf); unknown words 1."""
        rank = self._ranks.get(word, 20_000)
        return min(1.0, math.log(rank + 1) / math.log(20_000))

    def acts(self, word: str) -> bool:
        """Whether it is chiefly a verb."""
        return word in self._verbs

    def qualifies(self, word: str) -> bool:
        """Whether it is chiefly an adjective or adverb."""
        return word in self._modifiers


_KEEP = frozenset({"left", "saw", "found", "ground", "better", "best", "worse", "worst", "more"})
"""Forms that are more often a word of their own than the irregular form of another."""


@lru_cache(maxsize=50_000)
def _root(word: str) -> str:
    """The word without its derivational ending: `activation` and `activate` → `activ`."""
    for ending in _SUFFIXES:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word
