"""Is the cheap attempt worth it, or should a request go straight up?

choice = worth(cheap, dear, p_climb=0.7, ttft_target_ms=800)
choice.skip, choice.reasons     # (True, ("skip: cheap first costs 2.0 times ...",))

In a cascade the cheap answer has to be finished and judged before the next tier is asked, so a
climb costs both prices and both times.
"""

from __future__ import annotations

from dataclasses import dataclass

LATE_SHARE = 0.05
"""Share of requests that may miss a latency target: targets are understood as a 95th percentile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What asking one tier is expected to take."""

    tier: int
    """1, 2 or 3."""
    price_nusd: int
    """Expected price of the attempt, in nano-dollars."""
    answer_ms: float
    """Expected time to its whole answer: it is judged before it is sent."""
    ttft_ms: float
    """Expected time to its first token, for an attempt that is sent as it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Whether to leave the cheap attempt out."""

    skip: bool
    """True: ask the next tier at once."""
    cheap_first_nusd: float
    """Expected price of trying the cheap tier first."""
    straight_nusd: int
    """Expected price of asking the next tier at once."""
    reasons: tuple[str, ...]
    """For the request's record."""


def worth(
    cheap: Attempt, dear: Attempt, p_climb: float, ttft_target_ms: float | None = None
) -> Worth:
    """Compare cheap first (`price + p_climb * next price`) with going straight to `dear`.

    `p_climb` is the probability that the cheap answer will be judged too poor. The latency target
    counts only where it can be helped: going straight must be faster. It forbids the cheap attempt
    when that alone would be late, or when climbing would be late and more than `LATE_SHARE` climb.
    Raises `ValueError` when `p_climb` is not a probability.
    """
    if not 0 <= p_climb <= 1:
        raise ValueError(f"p_climb is {p_climb}; a probability lies between 0 and 1")
    expected = cheap.price_nusd + p_climb * dear.price_nusd
    reason = _late(cheap, dear, p_climb, ttft_target_ms)
    skip = bool(reason)
    if not skip:
        skip = expected > dear.price_nusd
        verb = "costs more than" if skip else "costs no more than"
        reason = (
            f"tier {cheap.tier} first {verb} tier {dear.tier} at once: "
            f"{cheap.price_nusd} + {p_climb:.2f} * {dear.price_nusd} = {expected:.0f} nUSD "
            f"against {dear.price_nusd}"
        )
    return Worth(
        skip=skip,
        cheap_first_nusd=expected,
        straight_nusd=dear.price_nusd,
        reasons=(f"tier {cheap.tier} skipped: {reason}" if skip else reason,),
    )


def _late(cheap: Attempt, dear: Attempt, p_climb: float, target: float | None) -> str:
    """Why the latency target forbids the cheap attempt; empty when it does not."""
    if target is None or dear.ttft_ms >= cheap.answer_ms + p_climb * dear.ttft_ms:
        return ""
    if cheap.answer_ms > target:
        return f"its answer takes {cheap.answer_ms:.0f} ms and the target is {target:.0f} ms"
    both = cheap.answer_ms + dear.ttft_ms
    if both > target and p_climb > LATE_SHARE:
        return (
            f"climbing takes {both:.0f} ms, the target is {target:.0f} ms, "
            f"and {p_climb:.0%} would climb"
        )
    return ""
