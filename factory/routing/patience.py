"""How long one attempt may take while another tier could answer instead.

    allowed = attempt(whole=True, tokens=64, target_ms=800, usual=usual, most_s=120.0)
    allowed.seconds, allowed.reason    # (5.6, "3 times the endpoint's target of 800 ms and ...")

An endpoint's latency target says what its callers expect, so a tier that is dead or far too slow
is left for the next one after a few times of it. Where nothing else can answer, waiting is all
there is.
"""

from __future__ import annotations

from dataclasses import dataclass

TIMES = 3.0
"""How many times its target, or what is usual, an attempt may take."""

TOKEN_MS = 50.0
"""Time for a token of a whole answer while nothing is known of the model: slow, on any hardware."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """What a tier's attempts have taken lately."""

    answer_ms: float
    """To the end of a whole answer."""
    ttft_ms: float
    """To the first token of a stream; 0 when none was seen."""
    completion_tokens: float
    """Mean length of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """The time an attempt gets."""

    seconds: float
    reason: str
    """For the error when it is over; empty when it is only the engine's own limit."""


def attempt(
    *, whole: bool, tokens: int, target_ms: float | None, usual: Usual | None, most_s: float
) -> Allowed:
    """The time for a whole answer of up to `tokens` tokens, or for the first token of a stream.

    At most `most_s`, which is also what an endpoint without a target gets. A whole answer gets time
    for its length on top, at the pace that is usual for the tier. What is usual counts too, so that
    a target which the tier never meets does not turn every answer away.
    """
    if target_ms is None:
        return Allowed(seconds=most_s, reason="")
    allowed_ms = TIMES * target_ms
    why = f"{TIMES:g} times the endpoint's target of {target_ms:g} ms"
    known_ms = 0.0
    if usual is not None:
        known_ms = TIMES * (usual.answer_ms if whole else usual.ttft_ms or usual.answer_ms)
    if known_ms > allowed_ms:
        allowed_ms, why = known_ms, f"{TIMES:g} times what is usual"
    if whole:
        pace_ms = TOKEN_MS
        if usual is not None and usual.completion_tokens >= 1:
            pace_ms = min(TOKEN_MS, usual.answer_ms / usual.completion_tokens)
        allowed_ms += tokens * pace_ms
        why += f" and time for {tokens} tokens"
    if allowed_ms >= most_s * 1000:
        return Allowed(seconds=most_s, reason="")
    return Allowed(seconds=allowed_ms / 1000, reason=why)
