"""Is the model sure of its own answer? Judged from the token log-probabilities it returned.

judge([-0.01, -0.2], threshold=0.5)    # Verdict(accept=True, confidence=0.90, ...)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is good enough to be sent, and why."""

    accept: bool
    """True when the answer may be sent."""
    confidence: float | None
    """Between 0 and 1; None when the engine gave no log-probabilities."""
    reasons: tuple[str, ...]
    """For the request's record."""


def confidence(token_logprobs: Sequence[float]) -> float:
    """Geometric mean of the token probabilities, between 0 and 1.

    This is the length-normalized sequence likelihood (Malinin and Gales, "Uncertainty Estimation
    in Autoregressive Structured Prediction", ICLR 2021). No tokens, or a log-probability that is
    not a number, gives 0.
    """
    if not token_logprobs:
        return 0.0
    mean = math.fsum(min(value, 0.0) for value in token_logprobs) / len(token_logprobs)
    return 0.0 if math.isnan(mean) else math.exp(mean)


def judge(token_logprobs: Sequence[float] | None, threshold: float) -> Verdict:
    """Accept an answer whose confidence is at least `threshold`.

    `None` means that the engine cannot say; such an answer is accepted, since there is nothing
    to hold against it.
    """
    if token_logprobs is None:
        return Verdict(True, None, ("confidence unknown: the engine gave no log-probabilities",))
    sure = confidence(token_logprobs)
    accept = sure >= threshold
    sign = ">=" if accept else "<"
    return Verdict(accept, sure, (f"confidence {sure:.3f} {sign} {threshold:g}",))
