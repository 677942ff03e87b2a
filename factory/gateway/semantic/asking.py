"""What a question asks for: a time, a reason, a cost, a way to do something.

refined({"thing"}, "what is the price of a ticket")      # frozenset({"cost"})
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ABLE = re.compile(
    r"\b(can|could|may|might) (i|we|one|someone|somebody|people|my|a|the|"
    r"you(?! (please |kindly |also )?(tell|explain|help|show|advise|guide|describe|let|clarify|say|"
    r"give|walk|confirm|inform|assist)))\b|"
    r"\b(is|are) (it|there|we|i|you) (any |a |some )?(possible|way|ways|able|option|method)\b|"
    r"\b(am|are) (i|we) (able|allowed|permitted)\b|\bpossible to\b"
)
_PROCEDURE = re.compile(
    r"\bhow (do|can|could|would|should|to|does|must|might|may)\b|\b(way|ways|steps?|process|"
    r"procedure|instructions?|method) (to|for|of|is|are|do|i|in)\b|"
    r"\bwhat (do|should|must|would|can|could) (i|we|you) (need to |have to )?do\b"
)
_COUNT = re.compile(r"\bhow (many|much|big|large|old|far|high|heavy|tall|often)\b")
_COST = re.compile(
    r"\b(cost|costs|price|prices|pricing|fee|fees|charges?)\b|"
    r"\bhow much (is|are|was|were|for|to)\b"
)
_NUMBER_OF = re.compile(r"\b(what|which|the|maximum|total|any) (number|amount|quantity) of\b")
_TIME = re.compile(
    r"\bhow (long|soon|quickly|fast|late|early)\b|\bwhat (time|date|day|year)\b|"
    r"\bhow (many|much) (longer|time|days|hours|weeks|months|minutes)\b"
)
_REASON = re.compile(
    r"\b(reason|reasons|cause|causes|caused|how come|what makes|what made|because of what)\b"
)
_CAN = re.compile(
    r"\b(?:can|could|may|might)(?:n't)? (?!you |u |\d)|\b(?:allowed|permitted|legal|okay|ok) to\b"
)
_MUST = re.compile(
    r"\b(?:must|(?:have|has|had|need|needs) to|needs?|required?|requires|requirement|mandatory|"
    r"obliged|obligatory|compulsory|necessary)\b"
)
_SHOULD = re.compile(
    r"\b(?:should|ought|supposed to|recommended|advisable|good idea|had better|better to)\b"
)
_LASTING = re.compile(r"\bhow long (?!(?:\w+ ){0,8}(?:takes?|took|until|till|before|after|will)\b)")
_TENSE = re.compile(
    r"\b(?:(?P<past>was|were|did)|(?P<future>will (?:\w+ ){0,2}?be)|is|are|am|do|does)\b"
)
_PAST = re.compile(r"\b(?:was|were|did|had|been)\b")
_PRESENT = re.compile(r"\b(?:is|are|am|do|does|has|have)\b")
_MEANING = re.compile(r"\bwhat (?:do|does|did) .{1,60} mean\b|\b(?:meaning|definition) of\b")
QUESTION_WORDS = {
    "why": "reason",
    "when": "time",
    "who": "person",
    "whom": "person",
    "whose": "person",
    "where": "place",
    "how": "procedure",
    "what": "thing",
    "which": "thing",
}
"""Question word to what it asks for, unless the rest of the question says more."""


def refined(words: Iterable[str], heard: str) -> frozenset[str]:
    """What is asked, from the question words found and the whole text in lower case.

    One or more of reason, time, duration, person, place, count, cost, frequency, procedure,
    meaning, can, yesno, thing;
    empty for a statement.
    """
    asks = set(words)
    if _COUNT.search(heard):
        asks = asks - {"procedure"} | {"cost" if _COST.search(heard) else "count"}
    if "how often" in heard:
        asks = asks - {"count", "procedure"} | {"frequency"}
    if _TIME.search(heard):
        asks = asks - {"procedure", "thing", "count"} | {"time"}
    if "thing" in asks and _COST.search(heard):
        asks = asks - {"thing"} | {"cost"}
    if "thing" in asks and _NUMBER_OF.search(heard):
        asks = asks - {"thing"} | {"count"}
    if _PROCEDURE.search(heard) and not asks & {"count", "cost", "time"}:
        asks = asks - {"thing", "yesno"} | {"procedure"}
    if "thing" in asks and _MEANING.search(heard):
        asks = asks - {"thing"} | {"meaning"}
    if "time" in asks and _LASTING.search(heard):
        asks = asks - {"time"} | {"duration"}
    if asks <= {"yesno", "thing", "procedure"} and _ABLE.search(heard):
        asks = asks - {"yesno"} | ({"can"} if "how" not in heard.split()[:8] else set())
    if _REASON.search(heard):
        asks = asks - {"thing"} | {"reason"}
    return frozenset(asks)


def modality(heard: str) -> str:
    """`must`, `may`, `should`, or nothing: what a question supposes of what it asks about."""
    if _MUST.search(heard):
        return "must"
    if _SHOULD.search(heard):
        return "should"
    return "may" if _ABLE.search(heard) or _CAN.search(heard) else ""


def tense(heard: str) -> str:
    """`past`, `present` or `future` by the first auxiliary; empty without one or with several."""
    match = _TENSE.search(heard)
    if match is None:
        return ""
    if match["future"]:
        return "future"
    mixed = _PRESENT if match["past"] else _PAST
    return "" if mixed.search(heard) else "past" if match["past"] else "present"
