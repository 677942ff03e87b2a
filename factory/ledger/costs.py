"""The cost report added up by the database, for ledgers too large to read through.

`Ledger.costs` calls it; the figures are those of `report.costs_report`, which a test compares.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Integer, cast, func, select

from factory.ledger.report import ChargeGroup, CostsReport, RequestGroup, assemble, rank
from factory.ledger.schema import CHARGES, REQUESTS, within


def costs(connection: Connection, since: datetime | None, until: datetime | None) -> CostsReport:
    """The report of requests created from `since` up to, not including, `until`.

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
    return assemble(request_groups, charge_groups, p50, p95, since=since, until=until)
