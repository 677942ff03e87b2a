"""What attempts have taken lately, by endpoint and tier: time, tokens, and how often they climbed.

    experience.answered("helpdesk", 1, latency_ms=640, completion_tokens=12, accepted=True)
    experience.worth(call, 1, 3, prompt_tokens, estimate)    # Worth, or None

Exponentially weighted means (Roberts, "Control Chart Tests Based on Geometric Moving Averages",
1959), kept in memory: after a restart the cheap tier is simply tried first again.
"""

from __future__ import annotations

from dataclasses import dataclass

from factory.gateway.call import Call
from factory.routing.estimate import Estimate
from factory.routing.patience import Usual
from factory.routing.worth import Attempt, Worth, worth

WEIGHT = 0.05
"""Of the newest attempt in a mean."""

FEWEST = 20
"""Attempts before anything is concluded from them."""


@dataclass(slots=True)
class _Means:
    """Of one endpoint's attempts at one tier."""

    count: int = 0
    answer_ms: float = 0.0
    ttft_ms: float = 0.0
    completion_tokens: float = 0.0
    climbed: float = 0.0

    def add(self, **values: float) -> None:
        """Take in one attempt; what it does not tell stays."""
        self.count += 1
        weight = max(WEIGHT, 1 / self.count)
        for name, value in values.items():
            mean = getattr(self, name)
            setattr(self, name, mean + weight * (value - mean))


class Experience:
    """The means of one gateway process."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, int], _Means] = {}

    def answered(
        self, endpoint: str, tier: int, *, latency_ms: float, completion_tokens: int, accepted: bool
    ) -> None:
        """Note an attempt that gave a whole answer."""
        means = self._means.setdefault((endpoint, tier), _Means())
        means.add(
            answer_ms=latency_ms,
            completion_tokens=completion_tokens,
            climbed=0.0 if accepted else 1.0,
        )

    def began(self, endpoint: str, tier: int, *, ttft_ms: float) -> None:
        """Note when a stream gave its first token."""
        self._means.setdefault((endpoint, tier), _Means()).add(ttft_ms=ttft_ms)

    def ttft_ms(self, endpoint: str, tier: int) -> float:
        """Usual time to the first token, or to the whole answer; 0 while nothing is known."""
        means = self._means.get((endpoint, tier))
        return (means.ttft_ms or means.answer_ms) if means else 0.0

    def usual(self, endpoint: str, tier: int) -> Usual | None:
        """What a tier's attempts have taken lately; None while too few are known."""
        means = self._means.get((endpoint, tier))
        if means is None or means.count < FEWEST:
            return None
        return Usual(
            answer_ms=means.answer_ms or means.ttft_ms,
            ttft_ms=means.ttft_ms,
            completion_tokens=means.completion_tokens,
        )

    def worth(
        self, call: Call, cheap: int, dear: int, prompt_tokens: int, estimate: Estimate | None
    ) -> Worth | None:
        """Whether to leave out the tier `cheap`; None while too little is known of one of them."""
        attempts = [self._attempt(call, tier, prompt_tokens) for tier in (cheap, dear)]
        first, then = attempts
        if first is None or then is None:
            return None
        p_good = dict(estimate.p_good).get(cheap) if estimate else None
        p_climb = self._means[call.name, cheap].climbed if p_good is None else 1 - p_good
        return worth(first, then, p_climb, call.endpoint.target.ttft_ms)

    def _attempt(self, call: Call, tier: int, prompt_tokens: int) -> Attempt | None:
        means = self._means.get((call.name, tier))
        if means is None or means.count < FEWEST:
            return None
        price = call.served[tier].price
        return Attempt(
            tier=tier,
            price_nusd=price.nano_usd(prompt_tokens, round(means.completion_tokens)),
            answer_ms=means.answer_ms or means.ttft_ms,
            ttft_ms=means.ttft_ms or means.answer_ms,
        )
