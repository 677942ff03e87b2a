"""Passive sentences said actively, so that who does what to whom stands in one order.

    active("was the clerk fired by the boss", lexicon)     # "did the boss fired the clerk"
    active("how can pdf be converted to csv", lexicon)     # "how can one converted pdf to csv"

Verbs keep their form: they are compared by base form anyway. What is unclear stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from factory.gateway.semantic.lexicon import Lexicon

_WORDS = r"(?:[\w'-]+ ){0,3}?[\w'-]+"
"""One to four words, as few as will do."""
_END = r"(?= (?:in|on|at|for|to|from|with|without|after|before|during|when|if|because)\b|[?.!,;]|$)"
_BE = r"is|are|am|was|were"
_PAST = frozenset({"was", "were", "got"})

_BY_WHOM = re.compile(rf"\bby whom (?P<be>{_BE}) (?P<what>{_WORDS}) (?P<verb>[\w'-]+){_END}", re.I)
_WHAT_BY = re.compile(
    rf"\b(?P<asked>what|who|which \w+) (?P<be>{_BE}) (?P<verb>[\w'-]+) by (?P<who>{_WORDS}){_END}",
    re.I,
)
_HAS_BEEN = re.compile(
    rf"\b(?P<has>has|have|had) (?P<what>{_WORDS}) been (?P<verb>[\w'-]+) by "
    rf"(?P<who>{_WORDS}){_END}",
    re.I,
)
_BY_END = re.compile(
    rf"\b(?P<asked>what|who|whom|which \w+) (?P<be>{_BE}) (?P<what>{_WORDS}) "
    r"(?P<verb>[\w'-]+) by(?=[?.!,;]|$)",
    re.I,
)
_ASKED = re.compile(
    rf"(?P<before>^|^(?:why|when|where|how|how often|how long) )(?P<be>{_BE}) "
    rf"(?P<what>{_WORDS}) (?:being |(?P<how>never|always|still|not|already|often) )?"
    rf"(?P<verb>[\w'-]+)(?: by (?P<who>{_WORDS}))?{_END}",
    re.I,
)
_MODAL = re.compile(
    r"\b(?P<modal>can|could|may|might|must|should|will|would|shall|to) "
    rf"(?P<what>{_WORDS}) (?:be|get) (?P<verb>[\w'-]+)(?: by (?P<who>{_WORDS}))?{_END}",
    re.I,
)
_ANY = re.compile(rf"\b(?:{_BE}|be|been|get)\b")
_OBJECTS = {"i": "me", "we": "us", "he": "him", "she": "her", "they": "them"}
_STATES = frozenset(
    [
        "allowed",
        "permitted",
        "required",
        "supposed",
        "expected",
        "obliged",
        "closed",
        "used",
        "based",
    ]
)
"""Participles that say how things are, not what is done to them."""
_SUBJECTS = {other: one for one, other in _OBJECTS.items()}


def active(text: str, lexicon: Lexicon) -> str:
    """The text with its passive clauses turned round, where that is clear."""
    lower = text.lower()
    if " by " not in f" {lower}" and not _ANY.search(lower):
        return text

    def whom(match: re.Match[str]) -> str:
        return f"who {match['verb']} {match['what']}"

    def by_end(match: re.Match[str]) -> str:
        return f"{match['asked']} {match['verb']} {match['what']}"

    def asked(match: re.Match[str]) -> str:
        did = "did" if match["be"].lower() in _PAST else "do"
        who = _subject(match["who"])
        how = f"{match['how']} " if match["how"] else ""
        return f"{match['before']}{did} {who} {how}{match['verb']} {_object(match['what'])}"

    def what_by(match: re.Match[str]) -> str:
        did = "did" if match["be"].lower() in _PAST else "do"
        return f"{match['asked']} {did} {_subject(match['who'])} {match['verb']}"

    def has_been(match: re.Match[str]) -> str:
        who, what = _subject(match["who"]), _object(match["what"])
        return f"{match['has']} {who} {match['verb']} {what}"

    def modal(match: re.Match[str]) -> str:
        who = _subject(match["who"])
        return f"{match['modal']} {who} {match['verb']} {_object(match['what'])}"

    rewrites = (
        (_BY_WHOM, whom),
        (_BY_END, by_end),
        (_WHAT_BY, what_by),
        (_HAS_BEEN, has_been),
        (_ASKED, asked),
        (_MODAL, modal),
    )
    for pattern, rewrite in rewrites:
        text = pattern.sub(_where_a_verb(rewrite, lexicon), text)
    return text


def _where_a_verb(
    rewrite: Callable[[re.Match[str]], str], lexicon: Lexicon
) -> Callable[[re.Match[str]], str]:
    def replaced(match: re.Match[str]) -> str:
        return rewrite(match) if _participle(match["verb"], lexicon) else match.group()

    return replaced


def _participle(word: str, lexicon: Lexicon) -> bool:
    raw = word.lower()
    if raw in _STATES:
        return False
    lemma = lexicon.lemma(raw)
    return raw != lemma and not raw.endswith(("s", "ing")) and lexicon.knows(lemma)


def _subject(who: str | None) -> str:
    return "one" if who is None else _SUBJECTS.get(who.lower(), who)


def _object(what: str) -> str:
    return _OBJECTS.get(what.lower(), what)
