"""Requests and tokens per minute, by team, key and endpoint.

    rates = Rates(share=1 / settings.gateway.replicas)
    admission = rates.admit([("team:support", limits)], tokens=300, now=clock.monotonic())
    if not admission.ok: raise refusal(admission)          # 429 with Retry-After, or 413
    rates.settle(admission, real_tokens=212)               # once, when the answer is known

One token bucket per scope and limit: it holds a minute's worth, fills evenly, and starts full. So
in any minute at most limit + one full bucket passes, and over time no more than the limit. All
scopes are debited or none.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from factory.config import Limits
from factory.gateway.errors import ApiError

LimitName = Literal["requests_per_minute", "tokens_per_minute"]

_KINDS: tuple[tuple[str, LimitName], ...] = (
    ("requests", "requests_per_minute"),
    ("tokens", "tokens_per_minute"),
)
_MINUTE_S = 60.0
_ROUNDING = 1e-6
"""Part of a request or token that floating point may lose."""


def refilled(level: float, elapsed_s: float, capacity: float, per_s: float) -> float:
    """What a bucket holds after `elapsed_s`, never above `capacity`; a clock going back adds none.

    The token bucket of RFC 2697, section 3, without its second bucket; the generic cell rate
    algorithm of ITU-T I.371 is the same rule kept as a time instead of a level.
    """
    return min(level + max(elapsed_s, 0.0) * per_s, capacity)


@dataclass(frozen=True, slots=True)
class Draw:
    """What one request wants from one bucket."""

    scope: str
    """`team:NAME`, `key:ID` or `endpoint:NAME`."""
    name: LimitName
    """The limit's name in the configuration."""
    limit: int
    """As configured, for all gateway processes together."""
    capacity: float
    """What a full bucket of this process holds."""
    per_s: float
    """How fast it fills."""
    level: float
    """What it holds; negative after a request that used more than was there."""
    amount: int
    """What is wanted."""

    @property
    def wait_s(self) -> float:
        """Seconds until there is enough; 0 when there is.

        A request above this process's share but within the whole limit waits for a full bucket and
        overdraws it; what follows waits longer, so the rate holds.
        """
        missing = min(self.amount, self.capacity) - self.level
        return missing / self.per_s if self.amount and missing > _ROUNDING else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The state of one limit, as the `x-ratelimit-*` headers tell it."""

    limit: int
    """As configured, for all gateway processes together."""
    remaining: int
    """What this process would still let pass now."""
    reset_s: float
    """Seconds until the bucket is full again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether a request may go on, and if not, when."""

    ok: bool
    """May go on; its requests and tokens have been debited."""
    never: bool = False
    """Larger than the whole limit: waiting does not help."""
    retry_after_s: float = 0.0
    """Seconds until the same request would pass."""
    scope: str = ""
    """The scope that refused."""
    limit: str = ""
    """The limit that refused, by its name in the configuration."""
    reasons: tuple[str, ...] = ()
    draws: tuple[Draw, ...] = ()
    """What was wanted, with the levels before."""
    debits: tuple[Debit, ...] = ()
    """For `Rates.settle`."""

    def reading(self, name: LimitName) -> Reading | None:
        """The tightest limit of that name after this request; None when no scope has one."""
        lefts = [
            (draw.level - (draw.amount if self.ok else 0), draw)
            for draw in self.draws
            if draw.name == name
        ]
        if not lefts:
            return None
        left, draw = min(lefts, key=lambda pair: pair[0])
        return Reading(
            limit=draw.limit,
            remaining=max(math.floor(left + _ROUNDING), 0),
            reset_s=(draw.capacity - left) / draw.per_s,
        )

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers, and `Retry-After` when waiting helps."""
        told: dict[str, str] = {}
        for kind, name in _KINDS:
            reading = self.reading(name)
            if reading is not None:
                told[f"x-ratelimit-limit-{kind}"] = str(reading.limit)
                told[f"x-ratelimit-remaining-{kind}"] = str(reading.remaining)
                told[f"x-ratelimit-reset-{kind}"] = duration(reading.reset_s)
        if not self.ok and not self.never:
            told["Retry-After"] = str(max(math.ceil(self.retry_after_s), 1))
            told["retry-after-ms"] = str(math.ceil(self.retry_after_s * 1000))
        return told


UNLIMITED = Admission(ok=True)
"""For a request none of whose scopes has a rate."""


def decide(draws: tuple[Draw, ...], debits: tuple[Debit, ...] = ()) -> Admission:
    """Let all draws pass or none; the one that must wait longest is named. Pure."""
    worst, wait_s = draws[0], 0.0
    for draw in draws:
        if draw.amount > draw.limit:
            return _refused(draws, draw, never=True, wait_s=0.0, then=_SMALLER)
        if draw.wait_s > wait_s:
            worst, wait_s = draw, draw.wait_s
    if wait_s > 0:
        return _refused(draws, worst, never=False, wait_s=wait_s, then=_later(wait_s))
    return Admission(ok=True, draws=draws, debits=debits)


_SMALLER = "it can never pass; shorten the prompt or lower max_tokens"


def _later(wait_s: float) -> str:
    return f"try again in {duration(wait_s)}"


def _refused(
    draws: tuple[Draw, ...], draw: Draw, never: bool, wait_s: float, then: str
) -> Admission:
    kind = next(kind for kind, name in _KINDS if name == draw.name)
    return Admission(
        ok=False,
        never=never,
        retry_after_s=wait_s,
        scope=draw.scope,
        limit=draw.name,
        reasons=(
            f"{draw.scope} may use {draw.limit} {kind} a minute ({draw.name}) and this request "
            f"wants {draw.amount}: {then}",
        ),
        draws=draws,
    )


def refusal(admission: Admission) -> ApiError:
    """The error for a refused admission: 429, or 413 when waiting cannot help."""
    if admission.never:
        return ApiError(
            413,
            "request_too_large",
            admission.reasons[0],
            param="max_tokens",
            headers=admission.headers(),
        )
    return ApiError(429, "rate_limit_exceeded", admission.reasons[0], headers=admission.headers())


def duration(seconds: float) -> str:
    """Seconds as OpenAI's headers write them: `20ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = math.ceil(seconds * 1000 - _ROUNDING)
    if milliseconds < 1000:
        return f"{max(milliseconds, 0)}ms"
    minutes, rest = divmod(milliseconds / 1000, 60)
    if not minutes:
        return f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h{minutes}m{int(rest)}s" if hours else f"{minutes}m{int(rest)}s"


class Bucket:
    """The mutable state behind one limit of one scope."""

    __slots__ = ("at", "filled", "level")

    def __init__(self, level: float, at: float) -> None:
        self.level = level
        self.at = at
        self.filled = 0

    def refill(self, now: float, capacity: float, per_s: float) -> float:
        """Bring the level up to `now`, and count how often it has been full."""
        self.level = refilled(self.level, now - self.at, capacity, per_s)
        self.at = max(self.at, now)
        self.filled += self.level >= capacity
        return self.level


@dataclass(frozen=True, slots=True)
class Debit:
    """Tokens taken from one bucket."""

    bucket: Bucket
    tokens: int
    filled: int
    """How often the bucket had been full by then."""


class Rates:
    """The buckets of one gateway process, for use from one event loop."""

    def __init__(self, share: float = 1.0, max_scopes: int = 10_000) -> None:
        """`share` is this process's part of every limit, 1 / `gateway.replicas`.

        Beyond `max_scopes` limits in memory the least recently used is forgotten, which gives its
        scope a full bucket again. Raises `ValueError` for a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {share}")
        self._share = share
        self._max_scopes = max_scopes
        self._buckets: OrderedDict[tuple[str, LimitName], Bucket] = OrderedDict()

    def admit(
        self, scopes: Sequence[tuple[str, Limits]], tokens: int, now: float, *, requests: int = 1
    ) -> Admission:
        """Debit `requests` and `tokens` from every scope that has limits, or from none.

        `tokens` is an estimate from above: prompt plus the most that may be generated. `now` is
        monotonic, in seconds. A cache hit passes with `tokens=0`; what was already counted as a
        request can draw its tokens later with `requests=0`.
        """
        for _, limits in scopes:
            if limits.requests_per_minute is not None or limits.tokens_per_minute is not None:
                return self._admit(scopes, tokens, now, requests)
        return UNLIMITED

    def _admit(
        self, scopes: Sequence[tuple[str, Limits]], tokens: int, now: float, requests: int
    ) -> Admission:
        draws: list[Draw] = []
        buckets: list[Bucket] = []
        for scope, limits in scopes:
            per_minute = limits.requests_per_minute
            if per_minute is not None:
                bucket, draw = self._draw(scope, "requests_per_minute", per_minute, requests, now)
                buckets.append(bucket)
                draws.append(draw)
            per_minute = limits.tokens_per_minute
            if per_minute is not None:
                bucket, draw = self._draw(scope, "tokens_per_minute", per_minute, tokens, now)
                buckets.append(bucket)
                draws.append(draw)
        debits = tuple(
            Debit(bucket, draw.amount, bucket.filled)
            for bucket, draw in zip(buckets, draws, strict=True)
            if draw.name == "tokens_per_minute"
        )
        admission = decide(tuple(draws), debits)
        if admission.ok:
            for bucket, draw in zip(buckets, draws, strict=True):
                bucket.level -= draw.amount
        return admission

    def _draw(
        self, scope: str, name: LimitName, limit: int, amount: int, now: float
    ) -> tuple[Bucket, Draw]:
        # With many replicas the share of a small limit may be less than one request.
        capacity = max(limit * self._share, 1.0)
        per_s = limit * self._share / _MINUTE_S
        bucket = self._bucket(scope, name, capacity, now)
        level = bucket.refill(now, capacity, per_s)
        return bucket, Draw(scope, name, limit, capacity, per_s, level, amount)

    def _bucket(self, scope: str, name: LimitName, capacity: float, now: float) -> Bucket:
        key = (scope, name)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(capacity, now)
            if len(self._buckets) > self._max_scopes:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def settle(self, admission: Admission, real_tokens: int) -> None:
        """Correct the estimate of `admission`; call it once, for aborted requests too.

        More than estimated is always debited. Less is given back unless the bucket has been full
        since: then its minute is over, and giving back would let more than the limit pass.
        """
        for debit in admission.debits:
            back = debit.tokens - real_tokens
            if back < 0 or debit.filled == debit.bucket.filled:
                debit.bucket.level += back
