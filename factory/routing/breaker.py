"""The circuit breaker of one model: leave it alone while it fails, try it again with one request.

    state = Breaker()
    allowed = allow(state, now, settings.routing.breaker)     # may this request ask the model?
    if allowed.ok:
        state = allowed.state                                 # holds the trial, if it is one
        ...
        state = failed(state, now, settings.routing.breaker).state    # or succeeded(state).state

A pure state machine (Nygard, "Release It!", 2007; the three states of Fowler's CircuitBreaker).
`now` is monotonic seconds from a clock that the caller owns. A caller that asks and never reports
(a killed client) must call `failed` or `succeeded` if it can; if it cannot, the trial lapses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from factory.config import Breaker as Limits

_FOR_EVER = 64
"""Doublings beyond which a cooldown has long reached its maximum; keeps the power finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is remembered of one model."""

    state: Literal["closed", "open", "half_open"] = "closed"
    """`closed` lets all through, `open` none, `half_open` one trial."""
    failures: int = 0
    """Failures in a row while closed."""
    trips: int = 0
    """Times it opened since the last success."""
    until: float = 0.0
    """When an open breaker may be tried, or when a trial in progress lapses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The state after an event, and why."""

    state: Breaker
    """To be kept in place of the old one."""
    reasons: tuple[str, ...]
    """For the log; empty when nothing worth saying happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Whether a request may ask the model now."""

    ok: bool
    """True when it may."""
    state: Breaker
    """To be kept in place of the old one: a trial has been given to this request."""
    trial: bool = False
    """This request decides whether the breaker closes."""
    retry_after_s: float = 0.0
    """Seconds until the next trial, when refused."""
    reasons: tuple[str, ...] = ()
    """For the request's record."""


def allow(breaker: Breaker, now: float, limits: Limits) -> Allowed:
    """May a request ask the model at `now`? An open breaker past its time gives one trial."""
    if breaker.state == "closed":
        return Allowed(ok=True, state=breaker)
    if now < breaker.until:
        wait = breaker.until - now
        what = "is being tried" if breaker.state == "half_open" else "failed too often"
        return Allowed(
            ok=False,
            state=breaker,
            retry_after_s=wait,
            reasons=(f"circuit open: the model {what}; next trial in {wait:.1f} s",),
        )
    lapsed = breaker.state == "half_open"
    trial = replace(breaker, state="half_open", until=now + cooldown_s(breaker.trips, limits))
    why = "the last trial never reported" if lapsed else "the cooldown is over"
    return Allowed(ok=True, state=trial, trial=True, reasons=(f"circuit half open: {why}",))


def succeeded(breaker: Breaker) -> Change:
    """The model answered: everything is forgiven."""
    reasons = () if breaker.state == "closed" else ("circuit closed: the model answered",)
    return Change(state=Breaker(), reasons=reasons)


def failed(breaker: Breaker, now: float, limits: Limits) -> Change:
    """The model failed at `now`: open after `limits.failures` in a row, or after a lost trial.

    Each opening without a success in between doubles the cooldown, up to `max_cooldown_s`. A
    failure that arrives while the breaker is open began before it opened and changes nothing.
    """
    if breaker.state == "open":
        return Change(state=breaker, reasons=())
    failures = breaker.failures + 1
    if breaker.state == "closed" and failures < limits.failures:
        return Change(state=replace(breaker, failures=failures), reasons=())
    trips = breaker.trips + 1
    wait = cooldown_s(trips, limits)
    why = "the trial failed" if breaker.state == "half_open" else f"{failures} failures in a row"
    opened = Breaker(state="open", trips=trips, until=now + wait)
    return Change(state=opened, reasons=(f"circuit open for {wait:g} s: {why}",))


def cooldown_s(trips: int, limits: Limits) -> float:
    """Seconds an opening lasts: `cooldown_s`, doubled with each opening in a row."""
    doublings = min(max(trips - 1, 0), _FOR_EVER)
    return float(min(limits.cooldown_s * 2**doublings, limits.max_cooldown_s))
