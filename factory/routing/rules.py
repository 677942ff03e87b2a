"""The choice of a request's first tier: rules, then what was learned, else the lowest.

route = choose(features, endpoint, ladder.usable, settings.routing)
route.tier, route.reasons    # (1, ("tier 1: the lowest tier of the endpoint",))
route = choose(features, endpoint, ladder.usable, settings.routing, estimate, threshold=0.12)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from factory.config import Endpoint, Routing
from factory.routing.estimate import Estimate
from factory.routing.features import Features


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request starts."""

    tier: int | None
    """The first tier to ask; None when no tier may answer."""
    degraded: bool
    """The rules wished for a higher tier of the endpoint that may not be asked now."""
    reasons: tuple[str, ...]
    """For the request's record."""


def choose(
    features: Features,
    endpoint: Endpoint,
    available_tiers: Collection[int],
    routing: Routing,
    estimate: Estimate | None = None,
    threshold: float | None = None,
) -> Route:
    """The lowest available tier, unless the rules or a learned estimate wish for a higher one.

    `available_tiers` are those that may answer now; tiers outside the endpoint's own, and tier 3
    of a restricted endpoint, are disregarded even if listed. A hard prompt is longer than
    `hard_prompt_tokens` or matches one of `hard_patterns`; it starts above the endpoint's first
    tier. For any other an `estimate` counts if there is a calibrated `threshold` for it: the
    lowest tier over which no higher one promises more than that.
    """
    wished = [tier for tier in endpoint.tiers if tier >= 1]
    rungs = [
        tier
        for tier in wished
        if tier in available_tiers and not (tier == 3 and endpoint.sensitivity == "restricted")
    ]
    if not rungs:
        return Route(None, False, ("no tier of the endpoint can answer",))
    hard = _hard(features, routing)
    if not hard and estimate is not None and threshold is not None and routing.learned:
        learned = _learned(estimate, threshold, wished, rungs)
        if learned is not None:
            return learned
    if not hard:
        first = rungs[0] == wished[0]
        why = "the lowest tier of the endpoint" if first else "the lowest tier that can answer"
        return Route(rungs[0], False, (f"tier {rungs[0]}: {why}",))
    above = [tier for tier in rungs if tier > wished[0]]
    if above:
        return Route(above[0], False, (*hard, f"tier {above[0]}: the prompt is hard"))
    degraded = wished[-1] > rungs[-1]
    why = "no higher tier can answer" if degraded else "the endpoint has no higher tier"
    return Route(rungs[-1], degraded, (*hard, f"tier {rungs[-1]}: {why}"))


def _learned(
    estimate: Estimate, threshold: float, wished: list[int], rungs: list[int]
) -> Route | None:
    best = estimate.lowest(wished, threshold)
    if best is None:
        return None
    chances = ", ".join(f"tier {tier} {p:.2f}" for tier, p in estimate.p_good)
    learned = f"learned: chance of a good answer {chances}; threshold {threshold:.3f}"
    at_least = [tier for tier in rungs if tier >= best]
    if not at_least:
        return Route(rungs[-1], True, (learned, f"tier {rungs[-1]}: no higher tier can answer"))
    why = "the lowest that is good enough" if at_least[0] == best else f"tier {best} cannot answer"
    return Route(at_least[0], False, (learned, f"tier {at_least[0]}: {why}"))


def _hard(features: Features, routing: Routing) -> tuple[str, ...]:
    reasons = [f"hard: matches '{pattern}'" for pattern in features.matched]
    if features.prompt_tokens > routing.hard_prompt_tokens:
        reasons.append(f"hard: {features.prompt_tokens} tokens > {routing.hard_prompt_tokens}")
    return tuple(reasons)
