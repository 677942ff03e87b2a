"""Do several sampled answers agree? If they do, the model is likely right.

    agreement = agree(["Paris.", "paris", "Lyon"], threshold=0.6)
    agreement.best, agreement.verdict.accept      # (0, False): each agrees with half the others

Self-consistency (Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language
Models", ICLR 2023) for answers that are short or structured, and word overlap between samples
(Manakul et al., "SelfCheckGPT", EMNLP 2023) for prose.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from factory.routing.confidence import Verdict

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*")
_NEGATION = re.compile(
    r"\b(?:no|not|never|none|neither|nor|cannot|without)\b|\w+n['\u2019]t\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Which of several answers to send, and whether to trust it."""

    best: int
    """Index of the answer that agrees most with the others; the first of equals."""
    verdict: Verdict
    """Its `confidence` is the mean agreement of that answer with the others, 0 to 1."""


def agree(answers: Sequence[str], threshold: float) -> Agreement:
    """Judge sampled answers to one request by how much the most typical agrees with the rest.

    Empty answers agree with nothing. A single answer cannot be judged so and is accepted with
    confidence None. Raises `ValueError` when there is no answer at all.
    """
    if not answers:
        raise ValueError("there is no answer to compare; sample at least one")
    if len(answers) == 1:
        return Agreement(0, Verdict(True, None, ("agreement unknown: one answer was sampled",)))
    forms = [_normal(text) for text in answers]
    means = [
        sum(_alike(forms[i], forms[j]) for j in range(len(forms)) if j != i) / (len(forms) - 1)
        for i in range(len(forms))
    ]
    best = max(range(len(means)), key=lambda i: (means[i], -i))
    accept = means[best] >= threshold
    sign = ">=" if accept else "<"
    reason = f"agreement {means[best]:.3f} {sign} {threshold:g} over {len(answers)} answers"
    return Agreement(best, Verdict(accept, means[best], (reason,)))


@dataclass(frozen=True, slots=True)
class _Form:
    """An answer, ready to be compared."""

    text: str
    words: Counter[str]
    claims: tuple[tuple[str, ...], bool]
    """Its numbers in sorted order, and whether it says no an odd number of times."""


def _normal(text: str) -> _Form:
    stripped = text.strip()
    if stripped[:1] in ("{", "["):
        try:
            # Key order and spacing say nothing; every value does.
            same = json.dumps(json.loads(stripped), sort_keys=True, ensure_ascii=False)
            return _Form(same, Counter(), ((), False))
        except (ValueError, RecursionError):
            pass
    words = _WORD.findall(stripped.lower())
    numbers = sorted(number.replace(",", "").lstrip("+") for number in _NUMBER.findall(stripped))
    negative = len(_NEGATION.findall(stripped)) % 2 == 1
    return _Form(" ".join(words), Counter(words), (tuple(numbers), negative))


def _alike(a: _Form, b: _Form) -> float:
    """1 for the same answer, 0 when numbers or polarity differ, else the F1 of their words."""
    if not a.text or not b.text or a.claims != b.claims:
        return 0.0
    if a.text == b.text:
        return 1.0
    shared = (a.words & b.words).total()
    total = a.words.total() + b.words.total()
    return 2 * shared / total if total else 0.0
