"""The cost report added up by the database, for ledgers too large to read through.

`Ledger.costs` calls it; the figures are those of `report.costs_report`, which a test compares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    and_,
    case,
    cast,
    func,
    not_,
    or_,
    select,
)

from factory.ledger.outcomes import counts_for
from factory.ledger.report import ChargeGroup, CostsReport, RequestGroup, assemble, rank
from factory.ledger.schema import CHARGES, OUTCOMES, REQUESTS, within
from factory.ledger.success import HUMAN_NUSD_PER_HOUR, SuccessGroup, assemble_success


def costs(
    connection: Connection,
    since: datetime | None,
    until: datetime | None,
    human_nusd_per_hour: int = HUMAN_NUSD_PER_HOUR,
) -> CostsReport:
    """The report of requests created from `since` up to, not including, `until`.

    `human_nusd_per_hour` is the price of the human time in the outcomes.
    `connection` must see one moment in all its queries, as `Ledger.read` gives it.
    """
    window = within(since, until)
    asked = (
        REQUESTS.c.team,
        REQUESTS.c.endpoint,
        REQUESTS.c.tier,
        REQUESTS.c.status,
        REQUESTS.c.cache,
    )
    requests = select(
        *asked,
        func.count(),
        func.sum(cast(REQUESTS.c.degraded, Integer)),
        func.sum(REQUESTS.c.prompt_tokens),
        func.sum(REQUESTS.c.completion_tokens),
        func.sum(REQUESTS.c.top_tier_nusd),
    )
    spent = (CHARGES.c.team, CHARGES.c.endpoint, CHARGES.c.tier)
    charges = select(*spent, func.count(), func.sum(CHARGES.c.cost_nusd)).select_from(CHARGES)
    if window:
        charges = charges.join(REQUESTS)
    request_groups = [
        RequestGroup(*row[: len(asked)], *map(int, row[len(asked) :]))
        for row in connection.execute(requests.where(*window).group_by(*asked))
    ]
    charge_groups = [
        ChargeGroup(*row[: len(spent)], *map(int, row[len(spent) :]))
        for row in connection.execute(charges.where(*window).group_by(*spent))
    ]
    answered = sum(group.requests for group in request_groups if group.status == "ok")
    latency = (
        select(REQUESTS.c.latency_ms)
        .where(REQUESTS.c.status == "ok", *window)
        .order_by(REQUESTS.c.latency_ms)
        .limit(1)
    )
    p50, p95 = (
        connection.scalar(latency.offset(rank(answered, percent) - 1)) for percent in (50, 95)
    )
    return assemble(
        request_groups,
        charge_groups,
        p50,
        p95,
        since=since,
        until=until,
        success=assemble_success(_success_groups(connection, window), human_nusd_per_hour),
    )


def _success_groups(
    connection: Connection, window: Sequence[ColumnElement[bool]]
) -> list[SuccessGroup]:
    human_ms = cast(func.round(OUTCOMES.c.human_minutes * 60_000), BigInteger)
    reported = OUTCOMES.c.outcome_id.is_not(None)
    group = (
        REQUESTS.c.team,
        REQUESTS.c.endpoint,
        REQUESTS.c.tier,
        REQUESTS.c.model,
        REQUESTS.c.status,
    )
    query = (
        select(
            *group,
            func.count(),
            func.count(OUTCOMES.c.outcome_id),
            func.sum(case((OUTCOMES.c.success, 1), else_=0)),
            func.coalesce(func.sum(human_ms), 0),
            func.sum(REQUESTS.c.cost_nusd),
            func.sum(case((reported, REQUESTS.c.cost_nusd), else_=0)),
            func.sum(case((_on_the_cheapest_viable_tier(connection, window), 1), else_=0)),
        )
        .join_from(REQUESTS, OUTCOMES, counts_for(REQUESTS.c.request_id), isouter=True)
        .where(*window)
        .group_by(*group)
    )
    size = len(group)
    return [SuccessGroup(*row[:size], *map(int, row[size:])) for row in connection.execute(query)]


def _on_the_cheapest_viable_tier(
    connection: Connection, window: Sequence[ColumnElement[bool]]
) -> ColumnElement[bool]:
    """The condition that no lower tier which answers for the endpoint was skipped."""
    accepted = (
        select(REQUESTS.c.tier, REQUESTS.c.endpoint)
        .where(REQUESTS.c.status == "ok", REQUESTS.c.tier >= 1, ~REQUESTS.c.degraded, *window)
        .distinct()
    )
    # Looked up first: as a subquery, SQLite would work it out anew for every request.
    endpoints: dict[int, list[str]] = defaultdict(list)
    for tier, endpoint in connection.execute(accepted):
        endpoints[tier].append(endpoint)
    skipped = [
        and_(
            REQUESTS.c.tier > tier,
            REQUESTS.c.endpoint.in_(names),
            ~select(CHARGES.c.charge_id)
            .where(CHARGES.c.request_id == REQUESTS.c.request_id, CHARGES.c.tier == tier)
            .correlate(REQUESTS)
            .exists(),
        )
        for tier, names in endpoints.items()
    ]
    return and_(
        REQUESTS.c.status == "ok",
        REQUESTS.c.tier.is_not(None),
        ~REQUESTS.c.degraded,
        or_(OUTCOMES.c.success.is_(None), OUTCOMES.c.success),
        *(not_(each) for each in skipped),
    )
