"""A question as the guard reads it: content words, numbers, names, negations, what is asked.

    question = read("Can I send $20 from Savings to Paris?")
    question.numbers, question.names, [word.lemma for word in question.words]

English is assumed; `Reading.known` says how much of the text was recognized as such.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from factory.gateway.semantic.asking import QUESTION_WORDS, modality, refined, tense
from factory.gateway.semantic.lexicon import Lexicon
from factory.gateway.semantic.voice import active
from factory.gateway.semantic.words import (
    AUXILIARIES,
    CARRIERS,
    DAYS,
    DIRECTIONS,
    FUNCTION,
    GIVERS,
    IMPLIED,
    MEASURES,
    MONTHS,
    NEGATIONS,
    NUMBERS,
    OPENERS,
    ORDINALS,
    PHRASES,
    REPEATED,
    ROLES,
    SCALES,
    UNITS,
)

MAX_CHARACTERS = 2000
"""Longer questions are not compared: their differences are too many to be judged word by word."""

_TOKEN = re.compile(
    r"""(?P<url>(?:https?://|www\.)[^\s<>"']*[^\s<>"'.,;:?!)])
    |(?P<mail>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)
    |(?P<quote>"[^"\n]{1,200}"|“[^”\n]{1,200}”|`[^`\n]{1,200}`|(?<!\w)'[^'\n]{2,200}'(?!\w))
    |(?P<date>\d{4}-\d{2}-\d{2}|\d{1,2}[/.]\d{1,2}[/.]\d{2,4})
    |(?P<clock>\d{1,2}:\d{2}(?::\d{2})?)
    |(?P<number>[$€£¥]?\d+(?:,\d{3})*(?:\.\d+)*(?:%|°[CFcf]|[A-Za-z]{1,10}\b)?(?![\w-]))
    |(?P<code>(?<!\w)--?[A-Za-z][\w-]+(?<!-)|/[\w.-]+(?:/[\w.-]+)*|\w+(?:[._:\\]+\w+|\(\))+
        |(?=\w*\d)(?=\w*[^\W\d])\w+(?:-\w+)*|\w+-\d[\w-]*|[A-Za-z][+#]+)
    |(?P<word>[^\W\d_]+(?:['\u2019][^\W\d_]+)?)
    |(?P<symbol>[+*/=<>^|~%#@]|(?<=\d)\ ?[-\u2212]\ ?(?=\d))
    |(?P<stop>[.?!;:]+)
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(r"([$€£¥]?)(\d[\d,]*(?:\.\d+)*)(.*)")
_PHRASES = tuple((re.compile(pattern, re.I), into) for pattern, into in PHRASES)
_BOUNDARY = frozenset({".", "?", "!", ";", ":", ",", "and", "or", "but", "if", "when", "because"})
_PERSONS = {
    form: line.split()[0]
    for line in ("he him his", "she her hers", "they them their")
    for form in line.split()
}
_BOUNDS = frozenset(["before", "after", "since", "until", "within", "by", "to", "from"])
_ROMAN = {"II": 2, "III": 3, "IV": 4, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "XI": 11, "XII": 12}
_BESIDE = frozenset(
    "a an the my your his her our their this any every each is are was were be been".split()  # noqa: SIM905
)
"""Words before a participle that stands as an adjective."""
_SAME_ROLE = {"into": "to", "onto": "to", "using": "with"}


@dataclass(frozen=True, slots=True)
class Word:
    """A word that carries meaning of its own."""

    raw: str
    """As written, in lower case."""
    lemma: str
    """Its base form."""
    weight: float
    """Rarity, 0 to 1."""
    role: str
    """The preposition that governs it, or empty."""
    negated: bool
    """Whether a negation stands right before it."""
    acts: bool
    """Whether it is chiefly a verb."""
    qualifies: bool
    """Whether it is an adjective or adverb, or a participle that may stand as one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the guard compares."""

    words: tuple[Word, ...]
    """Content words in their order."""
    forms: frozenset[str]
    """All words in lower case and base form, function words included."""
    numbers: tuple[tuple[float, str], ...]
    """Numbers with their units, sorted; dates and months count as numbers."""
    counted: tuple[tuple[float, str], ...]
    """Numbers without a unit, each with the content word after it."""
    order: tuple[str, ...]
    """Numbers (not of dates) and persons spoken of, as they come."""
    bounds: tuple[str, ...]
    """What limits: before, after, until, since a number or a day, and what "only" stands before."""
    literals: frozenset[str]
    """Quoted strings, addresses, file names, identifiers, in lower case."""
    names: frozenset[str]
    """Words with a capital inside a sentence, in lower case."""
    negations: int
    """How many words turn the sentence round."""
    floating: bool
    """A negation stands where it is not clear what it negates ("doesn't my card …")."""
    addressed: bool
    """Something is done to the asker: "did she pay me", not "tell me"."""
    dangling: bool
    """The last word is a preposition: "whose father is he, and what is he afraid of"."""
    relations: tuple[str, ...]
    """Prepositions of direction (not the "to" before a verb), sorted."""
    asks: frozenset[str]
    """What is asked: see `asking.refined`."""
    modality: str
    """What the question supposes: `must`, `may`, `should`, or empty."""
    tense: str
    """`past` or `present` by the auxiliary that opens the question, or empty."""
    known: float
    """Share of the words that the lexicon knows, names left out."""
    text: str
    """Lower case, single spaces, without the final mark."""


def read(text: str, lexicon: Lexicon | None = None) -> Reading:
    """The reading of one question; any text is readable."""
    lexicon = lexicon or Lexicon.default()
    text = text.replace("\u2019", "'").strip()[:MAX_CHARACTERS]
    reader = _Reader(lexicon, shouting=_shouts(text))
    spoken = text
    for pattern, replacement in _PHRASES:
        spoken = pattern.sub(replacement, spoken)
    spoken = active(spoken, lexicon)
    end = 0
    for match in _TOKEN.finditer(spoken):
        kind = match.lastgroup or ""
        reader.unread(spoken[end : match.start()])
        reader.take(kind, match.group(kind))
        end = match.end()
    reader.unread(spoken[end:])
    plain, heard = (" ".join(one.lower().split()).rstrip(" .?!") for one in (text, spoken))
    return reader.reading(plain, heard)


def _shouts(text: str) -> bool:
    """Whether capitals say nothing, since nearly all words have them."""
    words = [word for word in text.split() if word[0].isalpha()]
    return text.isupper() or (
        len(words) > 5 and sum(w[0].isupper() for w in words) > 0.7 * len(words)
    )


class _Reader:
    """Collects tokens left to right."""

    def __init__(self, lexicon: Lexicon, shouting: bool) -> None:
        self.lexicon = lexicon
        self.shouting = shouting
        self.words: list[Word] = []
        self.forms: set[str] = set()
        self.numbers: list[tuple[float, str]] = []
        self.literals: set[str] = set()
        self.bounds: list[str] = []
        self.counted: list[tuple[float, str]] = []
        self.names: set[str] = set()
        self.negations = 0
        self.floating = False
        self.addressed = False
        self.dangling = False
        self.persons: list[str] = []
        self.asks: set[str] = set()
        self.relations: list[str] = []
        self._relation = ""
        self._role = ""
        self._negated = False
        self._start = True
        self._before = ""
        self._only = False
        self._numbered = 0
        self._spoken: float | None = None
        self._awaits_unit = False
        self._place = -1
        self._known = self._seen = 0

    def unread(self, gap: str) -> None:
        """Digits that no token has taken must agree literally."""
        self.literals.update(re.findall(r"\d+", gap))

    def take(self, kind: str, token: str) -> None:
        if kind == "stop":
            self._end_number()
            self._end_relation()
            self._start, self._role, self._negated, self._before = True, "", False, ""
            self._place = -1
            return
        if kind == "word":
            for place, part in enumerate(token.split("'")):
                self._word("will" if token.lower() == "won't" and not place else part, place > 0)
            return
        self._end_number()
        if kind == "number":
            self._figure(token)
        elif kind == "date":
            self._date(token)
        elif kind == "clock":
            self._bound()
            self.numbers.append((float(token.replace(":", ".", 1).split(":")[0]), ""))
            self._awaits_unit = True
        elif kind == "code" and token.lower().replace("-", "").isalpha() and token[0] != "-":
            for part in token.split("-"):
                self._word(part, False)
        else:
            bare = token.strip("\"'`“” ").lower()
            self.literals.add(bare.rstrip("/.,") or bare)
            if kind == "quote":
                self.forms.update(re.findall(r"\w+", token.lower()))
        self._start, self._before = False, ""

    def _bound(self) -> None:
        bound = {"till": "until"}.get(self._before, self._before)
        if bound in _BOUNDS:
            self.bounds.append(bound)

    def _figure(self, token: str) -> None:
        match = _NUMBER.fullmatch(token)
        assert match is not None, "the token pattern admits nothing else"
        sign, digits, unit = match.groups()
        unit = (sign or unit).lower()
        if digits.count(".") > 1:
            self.literals.add(digits)
            return
        value = float(digits.replace(",", ""))
        if unit in SCALES:
            value, unit = value * SCALES[unit], ""
        if unit and unit not in UNITS:
            self.literals.add(token.lower())
            return
        unit = UNITS.get(unit, unit)
        if unit == "rd":
            unit = "th"
        if self.words and self.words[-1].raw == "number" == self._before:
            self.words.pop()
        if not unit and "." in digits and digits.endswith("0"):
            # Version 2.10 is not version 2.1.
            self.literals.add(digits)
        self._bound()
        self.numbers.append((value, unit))
        self._awaits_unit = not unit
        self._negated = False

    def _date(self, token: str) -> None:
        self._bound()
        for part in re.split(r"[-/.]", token):
            self.numbers.append((float(part), ""))

    def _word(self, token: str, clitic: bool) -> None:
        raw = token.lower()
        if not raw:
            return
        if token in _ROMAN and self._before:
            self._end_number()
            self.numbers.append((float(_ROMAN[token]), ""))
            return
        self._place += not clitic
        if (clitic and raw == "t") or raw in NEGATIONS:
            self._negation(raw)
        self._asked(raw)
        self.dangling = raw in ROLES
        if raw in _PERSONS:
            self.persons.append(_PERSONS[raw])
        # A second "on" beside an "off" must be seen, so a few words are counted.
        again = raw in self.forms and raw in REPEATED
        self.forms.add(f"{raw}#2" if again else raw)
        if self._number(raw):
            self._start, self._before = False, raw
            return
        self._end_number()
        self._seen += 1
        named = (
            token[0].isupper()
            and not self.shouting
            and not clitic
            and (not self._start or (token.isupper() and len(token) > 1))
            and raw != "i"
            and raw not in UNITS
        )
        if raw == "me" or (raw == "us" and not named):
            self.addressed |= self._before not in CARRIERS and self._before not in GIVERS
        if len(raw) == 1 and raw not in "aistdm" and not clitic:
            self._content(raw, True)
        elif raw in FUNCTION and not named:
            self._known += 1
            if raw in ROLES:
                self._role = raw
                self._end_relation()
                relation = _SAME_ROLE.get(raw, raw)
                self._relation = relation if relation in DIRECTIONS else ""
            elif raw in _BOUNDARY:
                self._role = ""
        elif raw in CARRIERS or raw in NEGATIONS or (self._before == "how" and raw in MEASURES):
            self._known += 1
        else:
            self._content(raw, named)
        if not (clitic and raw == "t"):
            self._before = raw
        self._start = False

    def _content(self, raw: str, named: bool) -> None:
        lemma = raw if named else self.lexicon.lemma(raw)
        self._known += not named and self.lexicon.knows(raw)
        self._seen -= named
        if named:
            self.names.add(raw)
        self.forms.add(lemma)
        acts = not named and self.lexicon.acts(lemma)
        infinitive = acts and self._role == "to" and self._before in ("to", "be")
        infinitive = infinitive and (raw == lemma or self._before == "be")
        role = "" if infinitive else _SAME_ROLE.get(self._role, self._role)
        bent = acts and raw != lemma and not raw.endswith(("s", "ing"))
        bent = bent and self._before in _BESIDE
        qualifies = not named and (bent or self.lexicon.qualifies(lemma))
        weight = self.lexicon.weight(lemma)
        if len(self.numbers) > self._numbered and not self.numbers[-1][1]:
            self.counted.append((self.numbers[-1][0], lemma))
        self._numbered = len(self.numbers)
        if self._only:
            self.bounds.append(f"only {lemma}")
        self._only = raw == "only"
        self.words.append(Word(raw, lemma, weight, role, self._negated, acts, qualifies))
        self._negated = False
        if infinitive:
            self._relation = ""
        self._end_relation()
        if acts or (raw != lemma and raw.endswith("ing")):
            self._role = ""

    def _end_relation(self) -> None:
        if self._relation:
            self.relations.append(self._relation)
        self._relation = ""

    def _negation(self, raw: str) -> None:
        self.negations += 1
        # "Why doesn't my card work?": what is negated comes after the subject.
        inverted = raw == "t" and self._place <= 1
        self._negated, self.floating = not inverted, self.floating or inverted
        self._seen += raw == "t"
        self._known += raw == "t"

    def _number(self, raw: str) -> bool:
        if self._awaits_unit and raw in UNITS and self.numbers:
            self._awaits_unit = False
            value, _ = self.numbers[-1]
            self.numbers[-1] = (value, UNITS[raw])
            return True
        if self._awaits_unit and raw in SCALES and self.numbers:
            value, unit = self.numbers[-1]
            self.numbers[-1] = (value * SCALES[raw], unit)
            return True
        self._awaits_unit = False
        if raw in NUMBERS and raw not in ("one", "zero"):
            self._spoken = (self._spoken or 0.0) + NUMBERS[raw]
            return True
        if raw == "one" and self._spoken is not None and self._spoken % 10 == 0:
            self._spoken += 1
            return True
        if raw in SCALES and raw != "k" and (self._spoken or self._before in ("a", "one")):
            self._spoken = (self._spoken or 1.0) * SCALES[raw]
            return True
        if self._spoken is not None and raw in UNITS:
            self.numbers.append((self._spoken, UNITS[raw]))
            self._spoken = None
            return True
        if raw in ORDINALS:
            self._end_number()
            self.numbers.append((float(ORDINALS[raw]), "th"))
            return True
        if raw in MONTHS and raw not in ("mar", "dec", "sep"):
            self._end_number()
            self._bound()
            self.numbers.append((float(MONTHS[raw]), "month"))
            return True
        if raw.rstrip("s") in DAYS:
            self._end_number()
            self._bound()
            self.literals.add(raw.rstrip("s"))
            return True
        return False

    def _end_number(self) -> None:
        if self._spoken is not None:
            self.numbers.append((self._spoken, ""))
            self._spoken = None
            self._awaits_unit = False

    def _asked(self, raw: str) -> None:
        if raw in QUESTION_WORDS:
            if self._start or self._before in OPENERS or self._before in ROLES:
                self.asks.add(QUESTION_WORDS[raw])
        elif self._start and raw in AUXILIARIES:
            self.asks.add("yesno")

    def reading(self, plain: str, heard: str) -> Reading:
        self._end_number()
        self._end_relation()
        asks = refined(self.asks, heard)
        implied = frozenset[str]().union(*(IMPLIED.get(kind, ()) for kind in asks))
        return Reading(
            words=tuple(word for word in self.words if word.lemma not in implied),
            forms=frozenset(self.forms),
            numbers=tuple(sorted(self.numbers)),
            counted=tuple(self.counted),
            order=(
                *(
                    f"{value:g}{unit}"
                    for value, unit in self.numbers
                    if unit not in ("th", "month")
                ),
                *self.persons,
            ),
            bounds=tuple(sorted(self.bounds)),
            literals=frozenset(self.literals),
            names=frozenset(self.names),
            negations=self.negations,
            floating=self.floating,
            addressed=self.addressed,
            dangling=self.dangling,
            relations=tuple(sorted(self.relations)),
            asks=asks,
            modality=modality(heard),
            tense=tense(heard),
            known=self._known / self._seen if self._seen else 1.0,
            text=plain,
        )
