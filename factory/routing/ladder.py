"""The ladder of one request: which tiers may answer it, and what happens after each attempt.

    ladder = climbable(endpoint, [Rung(1), Rung(3, why_not="PREMIUM_API_KEY is not set")])
    step = next_step(ladder, start=1, tried=[Tried(1, verdict=low)])
    step.action, step.tier, step.degraded    # ("answer", 1, True)

`next_step` is a function of the whole history, so the cascade has no state of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from factory.config import Endpoint
from factory.routing.confidence import Verdict

MAX_ATTEMPTS = 2
"""Attempts at one tier: the first and one retry."""


@dataclass(frozen=True, slots=True)
class Rung:
    """What is known about a tier before it is asked."""

    tier: int
    """1, 2 or 3."""
    external: bool = False
    """The prompt would leave the cluster."""
    why_not: str = ""
    """Why it cannot answer this request; empty when it can."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The model tiers of an endpoint, split by whether they may answer this request."""

    usable: tuple[int, ...]
    """Tiers that may be asked, ascending."""
    blocked: tuple[tuple[int, str], ...] = ()
    """Tiers of the endpoint that may not be asked, each with its reason."""

    def above(self, tier: int) -> tuple[int, ...]:
        """Usable tiers higher than `tier`."""
        return tuple(other for other in self.usable if other > tier)

    def judged(self, tier: int) -> bool:
        """True when a better answer than this tier's would be worth wishing for."""
        return bool(self.above(tier)) or any(other > tier for other, _ in self.blocked)


def climbable(endpoint: Endpoint, rungs: Iterable[Rung]) -> Ladder:
    """The ladder of `endpoint` for one request.

    A restricted endpoint never reaches tier 3 nor a model outside the cluster, whatever is ready.
    """
    known = {rung.tier: rung for rung in rungs}
    usable: list[int] = []
    blocked: list[tuple[int, str]] = []
    for tier in endpoint.tiers:
        if tier == 0:
            continue
        rung = known.get(tier)
        if endpoint.sensitivity == "restricted" and (tier == 3 or (rung and rung.external)):
            blocked.append((tier, f"tier {tier} is closed to restricted endpoints"))
        elif rung is None:
            blocked.append((tier, f"no model serves tier {tier}"))
        elif rung.why_not:
            blocked.append((tier, f"tier {tier}: {rung.why_not}"))
        else:
            usable.append(tier)
    return Ladder(tuple(usable), tuple(blocked))


@dataclass(frozen=True, slots=True)
class Tried:
    """One finished attempt: either an answer with its verdict, or a failure."""

    tier: int
    """The tier that was asked."""
    verdict: Verdict | None = None
    """The judgement of its answer; None when it failed."""
    failure: str = ""
    """What went wrong; empty for an answer."""
    retryable: bool = False
    """The same tier may succeed if asked again."""
    rejected: bool = False
    """The engine found the request itself at fault, as with HTTP 400."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next."""

    action: Literal["try", "answer", "refuse"]
    """Ask `tier`; send the answer that `tier` gave; or give up."""
    tier: int | None
    """The tier meant by the action; None when giving up."""
    degraded: bool
    """A lesser answer than the one wished for stands in."""
    retry: bool
    """The same tier is asked again, after a short wait."""
    reasons: tuple[str, ...]
    """For the request's record."""


def next_step(ladder: Ladder, start: int, tried: Sequence[Tried]) -> Step:
    """The step after `tried`, for a request that the rules started on tier `start`.

    An answer below the threshold climbs to the next usable tier; when none is left it is sent
    after all, degraded if the endpoint has a higher tier. A failure is retried once when that can
    help, then the next tier up, then an answer already in hand, then lesser tiers stand in.
    """
    if not tried:
        return _ask(start, f"tier {start} asked first")
    last = tried[-1]
    if last.verdict is not None:
        return _after_answer(ladder, tried, last, last.verdict)
    return _after_failure(ladder, start, tried, last)


def _ask(tier: int, reason: str, *, degraded: bool = False, retry: bool = False) -> Step:
    return Step("try", tier, degraded, retry, (reason,))


def _after_answer(ladder: Ladder, tried: Sequence[Tried], last: Tried, verdict: Verdict) -> Step:
    failed_above = any(one.failure and one.tier > last.tier for one in tried)
    if verdict.accept:
        return Step("answer", last.tier, failed_above, False, verdict.reasons)
    untried = _untried(ladder.above(last.tier), tried)
    if untried:
        return _ask(untried[0], f"{verdict.reasons[0]}: climb to tier {untried[0]}")
    obstacles = tuple(why for tier, why in ladder.blocked if tier > last.tier)
    obstacles += tuple(
        f"tier {one.tier} failed" for one in tried if one.failure and one.tier > last.tier
    )
    return Step("answer", last.tier, bool(obstacles), False, verdict.reasons + obstacles)


def _after_failure(ladder: Ladder, start: int, tried: Sequence[Tried], last: Tried) -> Step:
    attempts = sum(one.tier == last.tier for one in tried)
    what = f"tier {last.tier} failed: {last.failure}"
    if last.retryable and attempts < MAX_ATTEMPTS:
        return _ask(last.tier, f"{what}; asked again", retry=True)
    in_hand = [one.tier for one in tried if one.verdict is not None]
    if last.rejected and not in_hand:
        return Step("refuse", None, False, False, (what,))
    if up := _untried(ladder.above(last.tier), tried):
        return _ask(up[0], f"{what}; tier {up[0]} stands in")
    if in_hand:
        best = max(in_hand)
        return Step("answer", best, True, False, (what, f"tier {best}'s own answer is sent"))
    if down := _untried(tuple(t for t in ladder.usable if t < start), tried):
        return _ask(down[-1], f"{what}; tier {down[-1]} stands in", degraded=True)
    obstacles = tuple(why for _, why in ladder.blocked)
    return Step("refuse", None, False, False, (what, "no other tier may answer", *obstacles))


def _untried(tiers: Sequence[int], tried: Sequence[Tried]) -> list[int]:
    asked = {one.tier for one in tried}
    return [tier for tier in tiers if tier not in asked]
