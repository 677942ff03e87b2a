"""Personal data, by Presidio's recognizers.

    PersonalData(PersonalDataFilter(filter="personal_data")).look(["call +49 30 901820"])

Presidio's recognizers by pattern, checksum and `phonenumbers` are used as they are; those that
need a language model (names, places) are not offered. They were made for documents at rest, so
here they see only the stretches of a text that can hold an entity: an e-mail address needs an
`@`, an account number digits. That keeps their time linear on hostile texts too.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from factory.config import PersonalDataFilter
from factory.gateway.guard.findings import Span, merged
from factory.gateway.guard.patterns import compiled

PHONE = "PHONE_NUMBER"
EMAIL = "EMAIL_ADDRESS"
REGIONS = ("US", "GB", "DE", "FR", "IL", "IN", "CA", "BR")
"""Presidio's own choice; a number with its country code is recognized everywhere."""
MAX_PHONES = 500
"""Distinct candidates of one text that are parsed; what looks like a number beyond is one."""

# Patterns of these entities need no digit, so they see the whole text.
_ANYWHERE = frozenset({"CRYPTO", "IP_ADDRESS", "MAC_ADDRESS", "URL", "UUID"})
_MARGIN = 64
_PIECE = 2_000
_WINDOW = re.compile(rf"\d(?:\D{{0,{2 * _MARGIN}}}\d)*")
_EMAIL = r"[\pL\pN!#$%&'*+\-/=?^_`{|}~.]+@[\pL\pN_-]+(?:\.[\pL\pN_-]+)+"
_PHONE = r"(?:[+\x{ff0b}(\[]\s?){0,2}\p{Nd}(?:[\s\-./()\[\]~\x{2013}\x{2014}]{0,4}\p{Nd}){6,18}"
_DATE = re.compile(r"[12]\d{3}[-/.][01]\d[-/.][0-3]\d(?: [0-2]\d)?")
_LOCAL_PART = 64
_EXTENSION = 16

# As in Presidio's LemmaContextAwareEnhancer: five words before, +0.35, at least 0.4.
_CONTEXT_WORDS = 5
_CONTEXT_CHARACTERS = 100
_CONTEXT_BONUS = 0.35
_CONTEXT_MINIMUM = 0.4
_WORD = re.compile(r"\w+")


class PersonalData:
    """Finds the configured entities."""

    repeats = True

    def __init__(self, config: PersonalDataFilter) -> None:
        """Raises `ValueError` for an unknown entity. Imports Presidio, which takes seconds."""
        known = known_entities()
        unknown = sorted(set(config.entities) - known.keys())
        if unknown:
            raise ValueError(
                f"guard: personal_data knows no entity {', '.join(unknown)}; "
                f"it knows {', '.join(sorted(known))}"
            )
        self.labels = frozenset(config.entities)
        self._threshold = config.threshold
        recognizers = [known[name]() for name in config.entities if name not in (PHONE, EMAIL)]
        self._anywhere = [one for one in recognizers if _entity(one) in _ANYWHERE]
        self._numeric = [one for one in recognizers if _entity(one) not in _ANYWHERE]
        self._email = known[EMAIL]() if EMAIL in config.entities else None
        self._phones = [known[PHONE](supported_regions=(region,)) for region in REGIONS]
        self._phones = self._phones if PHONE in config.entities else []
        self._emails, self._numbers = compiled(_EMAIL), compiled(_PHONE)
        self.look(["a@example.org +49 30 901820"])

    def look(self, texts: Sequence[str]) -> list[tuple[int, Span]]:
        """Spans whose score, raised by context words before them, reaches the threshold."""
        return [
            (index, span)
            for index, text in enumerate(texts)
            for span in dict.fromkeys(self._spans(text))
            if span.score >= self._threshold
        ]

    def _spans(self, text: str) -> list[Span]:
        found: list[Span] = []
        if self._email is not None and "@" in text:
            found += self._addresses(text)
        for recognizer in self._anywhere:
            for start, end in _pieces(0, len(text)):
                found += _scored(recognizer, text, start, end)
        windows = list(_windows(text)) if self._numeric or self._phones else []
        for recognizer in self._numeric:
            for start, end in windows:
                found += _scored(recognizer, text, start, end)
        if self._phones and windows:
            found += self._telephones(_without(text, found))
        return found

    def _addresses(self, text: str) -> Iterator[Span]:
        for match in self._emails.finditer(text):
            local = text.index("@", match.start())
            start = max(match.start(), local - _LOCAL_PART)
            yield from _scored(self._email, text, start, match.end())

    def _telephones(self, text: str) -> Iterator[Span]:
        seen: dict[str, list[tuple[int, int, Any]]] = {}
        for match in self._numbers.finditer(text):
            start, end = match.span()
            if _DATE.fullmatch(text, start, end) is not None:
                continue
            candidate = text[max(0, start - 1) : end + _EXTENSION]
            if candidate not in seen:
                if len(seen) >= MAX_PHONES:
                    yield Span(PHONE, start, end, _CONTEXT_MINIMUM, "not parsed, too many")
                    continue
                seen[candidate] = self._parsed(candidate)
            offset = max(0, start - 1)
            for first, last, recognizer in seen[candidate]:
                score = _in_context(recognizer, text, offset + first, recognizer.SCORE)
                yield Span(PHONE, offset + first, offset + last, score)

    def _parsed(self, candidate: str) -> list[tuple[int, int, Any]]:
        """The numbers in `candidate` by the first region that knows any."""
        for recognizer in self._phones:
            results = recognizer.analyze(candidate, [PHONE], None)
            if results:
                return [(one.start, one.end, recognizer) for one in results]
        return []


@cache
def known_entities() -> Mapping[str, Any]:
    """Presidio's recognizers that need no language model, by the entity they find."""
    presidio = importlib.import_module("presidio_analyzer")
    predefined = importlib.import_module("presidio_analyzer.predefined_recognizers")
    known: dict[str, Any] = {PHONE: predefined.PhoneRecognizer}
    for _, found in inspect.getmembers(predefined, inspect.isclass):
        if issubclass(found, presidio.PatternRecognizer):
            known[_entity(found())] = found
    known[EMAIL] = _offline_email(predefined.EmailRecognizer)
    return known


def _offline_email(base: Any) -> Any:
    """Presidio's recognizer with the public suffix list that tldextract ships, never fetched."""
    tldextract = importlib.import_module("tldextract")
    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    def validate_result(self: Any, pattern_text: str) -> bool:
        return bool(extract(pattern_text.rpartition("@")[2]).fqdn)

    return type("EmailRecognizer", (base,), {"validate_result": validate_result})


def _entity(recognizer: Any) -> str:
    return str(recognizer.supported_entities[0])


def _without(text: str, spans: Sequence[Span]) -> str:
    """`text` of the same length without what is certain, as an account number is."""
    pieces: list[str] = []
    position = 0
    for span in merged(span for span in spans if span.score == 1):
        pieces += (text[position : span.start], "<" * (span.end - span.start))
        position = span.end
    return "".join(pieces) + text[position:]


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Stretches around digits, in pieces."""
    for match in _WINDOW.finditer(text):
        start = max(0, match.start() - _MARGIN)
        yield from _pieces(start, min(len(text), match.end() + _MARGIN))


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Pieces that overlap, so that nothing is lost at their edges."""
    while end - start > _PIECE:
        yield start, start + _PIECE
        start += _PIECE - 2 * _MARGIN
    yield start, end


def _scored(recognizer: Any, text: str, start: int, end: int) -> Iterator[Span]:
    for one in recognizer.analyze(text[start:end], recognizer.supported_entities, None):
        first, last = start + one.start, start + one.end
        yield Span(one.entity_type, first, last, _in_context(recognizer, text, first, one.score))


def _in_context(recognizer: Any, text: str, start: int, score: float) -> float:
    if score >= 1 or not recognizer.context:
        return score
    before = text[max(0, start - _CONTEXT_CHARACTERS) : start].lower()
    words = _WORD.findall(before)[-_CONTEXT_WORDS:]
    if not any(hint.strip().lower() in word for word in words for hint in recognizer.context):
        return score
    return min(1.0, max(score + _CONTEXT_BONUS, _CONTEXT_MINIMUM))
