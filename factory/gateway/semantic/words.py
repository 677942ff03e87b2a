"""Word lists of the semantic cache's guard: small, English, closed classes.

    "not" in NEGATIONS, OPPOSITES["forbid"]

They stand in `words.txt`. What is open-ended (synonyms, antonyms, frequencies) is in
`lexicon.json`; these lists hold what a dictionary does not: which words carry no meaning of their
own in a question, and which do alone.
"""

from __future__ import annotations

from importlib import resources


def _sections() -> dict[str, list[str]]:
    text = resources.files("factory.gateway.semantic").joinpath("words.txt").read_text("utf-8")
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            lines = sections[line[1:-1]] = []
        elif line and not line.startswith("#"):
            lines.append(line)
    return sections


_SECTIONS = _sections()


def _words(name: str) -> frozenset[str]:
    return frozenset(word for line in _SECTIONS[name] for word in line.split())


def _opposites() -> dict[str, tuple[tuple[int, int], ...]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(_SECTIONS["contrasts"]):
        for side, group in enumerate(line.split("|")):
            for word in group.split():
                found.setdefault(word, []).append((number, side))
    return {word: tuple(places) for word, places in found.items()}


FUNCTION = _words("function")
CARRIERS = _words("carriers")
NEGATIONS = _words("negations")
ALONE = _words("alone")
REPEATED = _words("repeated")
DAYS = _words("days")
OPENERS = _words("openers")
AUXILIARIES = _words("auxiliaries")
MEASURES = _words("measures")
GIVERS = _words("givers")
DIRECTIONS = _words("directions")
SYMMETRIC = _words("symmetric")
ROLES = DIRECTIONS | _words("roles")

OPPOSITES = _opposites()
"""Word to (set, side): two words of one set on different sides exclude each other."""

SYNONYMS = tuple(_SECTIONS["synonyms"])
"""Groups of words that stand for each other."""

CLASHES = frozenset(frozenset(pair.split("/")) for pair in _words("clashes"))
"""Pairs of kinds of question that have no common answer."""

IMPLIED = {line.split()[0]: frozenset(line.split()[1:]) for line in _SECTIONS["implied"]}
"""Kind of question to the words that it makes superfluous."""

PHRASES = tuple(
    (pattern, replacement.strip().replace("_", " "))
    for line in _SECTIONS["phrases"]
    for pattern, _, replacement in [line.partition(" =>")]
)
"""(pattern, replacement) of phrases that count as one word; `_` in a replacement is a space."""

NUMBERS = {word: int(line.split()[0]) for line in _SECTIONS["numbers"] for word in line.split()[1:]}
"""Number word to value."""

SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "k": 1000}

ORDINALS = {word: place for place, word in enumerate(_SECTIONS["ordinals"][0].split(), start=2)}

MONTHS = {
    name: place for place, line in enumerate(_SECTIONS["months"], start=1) for name in line.split()
}

UNITS = {form: line.split()[0] for line in _SECTIONS["units"] for form in line.split()}
"""Spelling of a unit to the unit."""
