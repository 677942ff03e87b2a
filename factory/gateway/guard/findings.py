"""What filters find, what is decided about it, and how a text is redacted.

    spans = [Span("EMAIL_ADDRESS", 6, 20, 1.0)]
    redacted("write a@example.org", spans)     # "write <EMAIL_ADDRESS>"

A finding says where something is, never what it is: findings and reasons may be logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from factory.config import Act

REPEAT_MIN_CHARACTERS = 6
"""Shorter values are not looked for in the rest of the text: too many words contain them."""
REPEAT_MAX_VALUES = 256
"""Distinct values that are looked for in the rest of the text."""


class Span(NamedTuple):
    """A stretch of one text."""

    label: str
    start: int
    end: int
    score: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a filter found."""

    filter: str
    """The filter's name in the configuration."""
    act: Act
    """What the configuration wants done about it."""
    label: str
    """What it is, as in `EMAIL_ADDRESS`."""
    text: int
    """Which of the texts; -1 for all of them together."""
    start: int
    """First character, in the text as this filter saw it (earlier filters may have redacted)."""
    end: int
    """One past the last character."""
    score: float
    """How sure the filter is, 0 to 1."""
    note: str = ""
    """What else a reason should say. Never a part of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What happens to a request or an answer."""

    act: Literal["allow", "reject", "review"]
    """Let it go on, refuse it, or ask a person first."""
    onprem: bool
    """It must not leave the cluster, whatever the router prefers."""
    texts: tuple[str, ...]
    """The texts that may go on, redacted, in the order they came; empty after a rejection."""
    findings: tuple[Finding, ...]
    """Everything that was found before the decision was certain."""
    reasons: tuple[str, ...]
    """One sentence for each filter and label."""


class Looking(Protocol):
    """A filter: finds spans in texts, changes nothing."""

    labels: frozenset[str]
    """Every label it can find; a redacted text contains them in angle brackets."""
    repeats: bool
    """Whether a value it found once is redacted wherever else it occurs."""

    def look(self, texts: Sequence[str]) -> list[tuple[int, Span]]:
        """Spans with the index of their text."""


def decide(findings: Sequence[Finding], texts: Sequence[str]) -> Decision:
    """Combine findings: reject before review before everything that lets the request go on."""
    acts = {finding.act for finding in findings}
    act: Literal["allow", "reject", "review"] = (
        "reject" if "reject" in acts else "review" if "review" in acts else "allow"
    )
    return Decision(
        act=act,
        onprem="onprem" in acts,
        texts=() if act == "reject" else tuple(texts),
        findings=tuple(findings),
        reasons=reasons(findings),
    )


def reasons(findings: Iterable[Finding]) -> tuple[str, ...]:
    """One sentence for each filter, act, label and note, in the order of first appearance."""
    counts = Counter((one.filter, one.act, one.label, one.note) for one in findings)
    return tuple(
        f"{name}: {count} {label}{f' ({note})' if note else ''}: {act}"
        for (name, act, label, note), count in counts.items()
    )


def merged(spans: Iterable[Span]) -> list[Span]:
    """Overlapping spans as one, labelled by the surest and then the longest of them."""
    result: list[Span] = []
    best: tuple[float, int] = (0.0, 0)
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        rank = (span.score, span.end - span.start)
        if result and span.start < result[-1].end:
            last = result[-1]
            label = span.label if rank > best else last.label
            best = max(best, rank)
            result[-1] = Span(label, last.start, max(last.end, span.end), best[0])
        else:
            result.append(span)
            best = rank
    return result


def redacted(text: str, spans: Iterable[Span]) -> str:
    """`text` with each span replaced by its label in angle brackets, as Presidio does."""
    pieces: list[str] = []
    position = 0
    for span in merged(spans):
        pieces += (text[position : span.start], f"<{span.label}>")
        position = span.end
    pieces.append(text[position:])
    return "".join(pieces)


def repeated(texts: Sequence[str], found: Sequence[tuple[int, Span]]) -> list[tuple[int, Span]]:
    """Every other place where a found value occurs, in any of the texts.

    A password is recognized by the word before it; when the user repeats it alone, only this
    finds it. Bounded by `REPEAT_MIN_CHARACTERS` and `REPEAT_MAX_VALUES`.
    """
    values: dict[str, Span] = {}
    for index, span in found:
        if span.end - span.start >= REPEAT_MIN_CHARACTERS and len(values) < REPEAT_MAX_VALUES:
            values.setdefault(texts[index][span.start : span.end], span)
    known = {(index, span.start, span.end) for index, span in found}
    more: list[tuple[int, Span]] = []
    for value, span in values.items():
        for index, text in enumerate(texts):
            start = text.find(value)
            while start >= 0:
                end = start + len(value)
                if (index, start, end) not in known:
                    more.append((index, Span(span.label, start, end, span.score, "repeated")))
                start = text.find(value, end)
    return more
