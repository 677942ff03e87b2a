"""What the traffic cost: pure functions from records to a report.

    report = costs_report(ledger.requests(), ledger.charges())
    report.cost_per_1k_nusd, report.saving_nusd

`Ledger.costs` makes the same report inside the database. Both count the same two kinds of groups
and hand them to `assemble`, which does all the arithmetic, in integers.

Words: a request is *answered* when its status is `ok`; refused and failed ones are counted apart.
Cost is what all charges add up to, those of failed requests too. The price at the top tier is
that of the answered requests only, so the saving is never flattered. What a success cost is in
`success`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from factory.ledger.explanation import Explanation, explain
from factory.ledger.money import per_thousand, usd
from factory.ledger.outcomes import Outcome, that_count
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.success import (
    HUMAN_NUSD_PER_HOUR,
    SuccessReport,
    assemble_success,
    success_groups,
)

__all__ = [
    "AccountLine",
    "ChargeGroup",
    "CostsReport",
    "Explanation",
    "RequestGroup",
    "TierLine",
    "assemble",
    "costs_report",
    "explain",
    "rank",
]


_HITS = ("hit", "semantic")


class RequestGroup(NamedTuple):
    """Requests that are alike in the first five fields, added up."""

    team: str
    endpoint: str
    tier: int | None
    status: str
    cache: str
    requests: int
    degraded: int
    prompt_tokens: int
    completion_tokens: int
    top_tier_nusd: int


class ChargeGroup(NamedTuple):
    """Charges that are alike in the first three fields, added up."""

    team: str
    endpoint: str
    tier: int | None
    charges: int
    cost_nusd: int


@dataclass(frozen=True, slots=True)
class TierLine:
    """One tier's part of the traffic and of the cost."""

    tier: int | None
    """None collects charges that belong to no tier, such as refusals."""
    answered: int
    """Requests this tier gave the answer to."""
    share: float
    """Of all answered requests, from 0 to 1."""
    calls: int
    """Charges of this tier: more than `answered` where answers were thrown away or escalated."""
    cost_nusd: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "tier": self.tier,
            "answered": self.answered,
            "share": self.share,
            "calls": self.calls,
            **_money("cost", self.cost_nusd),
        }


@dataclass(frozen=True, slots=True)
class AccountLine:
    """What one endpoint, one team, or everybody together asked for and cost."""

    name: str
    """Empty where the request named no known endpoint or team."""
    requests: int
    answered: int
    refused: int
    errors: int
    degraded: int
    """Answered by a lower tier than wanted, because a higher one could not."""
    cache_hits: int
    """Answered by an exact or a semantic hit."""
    shared: int
    """Answered by a computation in flight that another request paid for."""
    prompt_tokens: int
    completion_tokens: int
    cost_nusd: int
    top_tier_nusd: int
    """The answered requests at the list price of the top tier."""

    @property
    def cost_per_1k_nusd(self) -> int | None:
        """Nano-dollars spent for 1,000 answered requests; None when nothing was answered."""
        return per_thousand(self.cost_nusd, self.answered)

    @property
    def saving_nusd(self) -> int:
        """Price at the top tier less what was spent; negative when the ladder cost more."""
        return self.top_tier_nusd - self.cost_nusd

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "requests": self.requests,
            "answered": self.answered,
            "refused": self.refused,
            "errors": self.errors,
            "degraded": self.degraded,
            "cache_hits": self.cache_hits,
            "shared": self.shared,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            **_money("cost", self.cost_nusd),
            **_money("cost_per_1k", self.cost_per_1k_nusd),
            **_money("top_tier", self.top_tier_nusd),
            **_money("saving", self.saving_nusd),
        }


@dataclass(frozen=True, slots=True)
class CostsReport:
    """The cost report of a time range; `total` has the sums, the rest are its parts."""

    since: datetime | None
    until: datetime | None
    total: AccountLine
    latency_p50_ms: float | None
    """Of the answered requests, by nearest rank; None when there are none."""
    latency_p95_ms: float | None
    by_tier: tuple[TierLine, ...]
    by_endpoint: tuple[AccountLine, ...]
    by_team: tuple[AccountLine, ...]
    success: SuccessReport
    """What a successful outcome cost, and the share of the cheapest viable tier."""

    @property
    def cost_per_1k_nusd(self) -> int | None:
        """Nano-dollars spent for 1,000 answered requests; None when nothing was answered."""
        return self.total.cost_per_1k_nusd

    @property
    def saving_nusd(self) -> int:
        """Price of the answered requests at the top tier less everything spent."""
        return self.total.saving_nusd

    @property
    def saving_share(self) -> float | None:
        """The saving as a part of the price at the top tier; None when that is nothing."""
        top = self.total.top_tier_nusd
        return self.saving_nusd / top if top else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: integers in `*_nusd`, exact decimal text in `*_usd`."""
        total = self.total.as_dict()
        del total["name"]
        return {
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
            **total,
            "saving_share": self.saving_share,
            "latency_p50_ms": self.latency_p50_ms,
            "latency_p95_ms": self.latency_p95_ms,
            "by_tier": [line.as_dict() for line in self.by_tier],
            "by_endpoint": [line.as_dict() for line in self.by_endpoint],
            "by_team": [line.as_dict() for line in self.by_team],
            "success": self.success.as_dict(),
        }


def costs_report(
    requests: Iterable[RequestRecord],
    charges: Iterable[ChargeRecord],
    since: datetime | None = None,
    until: datetime | None = None,
    outcomes: Iterable[Outcome] = (),
    human_nusd_per_hour: int = HUMAN_NUSD_PER_HOUR,
) -> CostsReport:
    """The cost report of `requests`; charges and outcomes of others are left out.

    `since` and `until` are only shown in the report: the caller chooses the records.
    `human_nusd_per_hour` is the price of the human time in the outcomes.
    """
    requests, charges = list(requests), list(charges)
    ids: set[str] = set()
    latencies: list[float] = []
    asked: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 5)
    spent: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 2)
    for request in requests:
        ids.add(request.request_id)
        ok = request.status == "ok"
        if ok:
            latencies.append(request.latency_ms)
        key = (request.team, request.endpoint, request.tier, request.status, request.cache)
        _add(
            asked[key],
            1,
            int(request.degraded),
            request.prompt_tokens,
            request.completion_tokens,
            request.top_tier_nusd,
        )
    for charge in charges:
        if charge.request_id in ids:
            _add(spent[charge.team, charge.endpoint, charge.tier], 1, charge.cost_nusd)
    latencies.sort()
    return assemble(
        [RequestGroup(*key, *sums) for key, sums in asked.items()],
        [ChargeGroup(*key, *sums) for key, sums in spent.items()],
        latency_p50_ms=latencies[rank(len(latencies), 50) - 1] if latencies else None,
        latency_p95_ms=latencies[rank(len(latencies), 95) - 1] if latencies else None,
        since=since,
        until=until,
        success=assemble_success(
            success_groups(requests, charges, that_count(outcomes)), human_nusd_per_hour
        ),
    )


def rank(count: int, percent: int) -> int:
    """Nearest rank of a percentile among `count` sorted values, from 1: ceil(percent% of count)."""
    return max(1, -(-count * percent // 100))


def assemble(
    requests: Sequence[RequestGroup],
    charges: Sequence[ChargeGroup],
    latency_p50_ms: float | None,
    latency_p95_ms: float | None,
    since: datetime | None,
    until: datetime | None,
    success: SuccessReport,
) -> CostsReport:
    """The report from its groups; the only place where anything is computed."""
    endpoints = sorted({g.endpoint for g in requests} | {g.endpoint for g in charges})
    teams = sorted({g.team for g in requests} | {g.team for g in charges})
    return CostsReport(
        since=since,
        until=until,
        total=_account("total", requests, charges),
        latency_p50_ms=latency_p50_ms,
        latency_p95_ms=latency_p95_ms,
        by_tier=_tiers(requests, charges),
        by_endpoint=tuple(
            _account(
                name,
                [g for g in requests if g.endpoint == name],
                [g for g in charges if g.endpoint == name],
            )
            for name in endpoints
        ),
        by_team=tuple(
            _account(
                name,
                [g for g in requests if g.team == name],
                [g for g in charges if g.team == name],
            )
            for name in teams
        ),
        success=success,
    )


def _account(
    name: str, requests: Sequence[RequestGroup], charges: Sequence[ChargeGroup]
) -> AccountLine:
    status: Counter[str] = Counter()
    for group in requests:
        status[group.status] += group.requests
    answered = [group for group in requests if group.status == "ok"]
    return AccountLine(
        name=name,
        requests=status.total(),
        answered=status["ok"],
        refused=status["refused"],
        errors=status["error"],
        degraded=sum(group.degraded for group in answered),
        cache_hits=sum(group.requests for group in answered if group.cache in _HITS),
        shared=sum(group.requests for group in answered if group.cache == "shared"),
        prompt_tokens=sum(group.prompt_tokens for group in requests),
        completion_tokens=sum(group.completion_tokens for group in requests),
        cost_nusd=sum(group.cost_nusd for group in charges),
        top_tier_nusd=sum(group.top_tier_nusd for group in answered),
    )


def _tiers(
    requests: Sequence[RequestGroup], charges: Sequence[ChargeGroup]
) -> tuple[TierLine, ...]:
    answered: Counter[int | None] = Counter()
    calls: Counter[int | None] = Counter()
    cost: Counter[int | None] = Counter()
    for asked in requests:
        if asked.status == "ok":
            answered[asked.tier] += asked.requests
    for spent in charges:
        calls[spent.tier] += spent.charges
        cost[spent.tier] += spent.cost_nusd
    tiers = sorted(set(answered) | set(calls), key=lambda tier: (tier is None, tier or 0))
    total = answered.total()
    return tuple(
        TierLine(
            tier=tier,
            answered=answered[tier],
            share=answered[tier] / total if total else 0.0,
            calls=calls[tier],
            cost_nusd=cost[tier],
        )
        for tier in tiers
    )


def _add(sums: list[int], *values: int) -> None:
    for index, value in enumerate(values):
        sums[index] += value


def _money(name: str, nusd: int | None) -> dict[str, int | str | None]:
    return {f"{name}_nusd": nusd, f"{name}_usd": None if nusd is None else usd(nusd)}
