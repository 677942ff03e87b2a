"""Costs as FOCUS 1.2 rows (FinOps Open Cost and Usage Specification), for any billing tool.

    for row in rows(connection, settings, since, until, "hour"):
        row["BilledCost"], row["EffectiveCost"], row["x_CostBasis"]

Two kinds of rows stand side by side and each fills one of FOCUS' cost columns, so that plain sums
are right. `allocation` rows are requests and jobs at list price: their `BilledCost` is what teams
are charged. `usage` rows are node-hours by pool, split into workload, idle and overhead: their
`EffectiveCost` is what the nodes cost. What a provider's model costs is real money and no
node's, so such a request fills both. `totals` are the same sums by the database, to compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, func, select

from factory.config import NANO, RentedPool, Settings
from factory.ledger import nodes
from factory.ledger.schema import CHARGES, JOB_CHARGES, NODE_HOURS, REQUESTS, within

Period = Literal["hour", "day", "charge"]
"""What one row covers; `charge` gives every charge of a request or job a row of its own."""
Kind = Literal["text", "cost", "number", "time"]

COLUMNS: dict[str, Kind] = {
    "AvailabilityZone": "text",
    "BilledCost": "cost",
    "BillingAccountId": "text",
    "BillingAccountName": "text",
    "BillingAccountType": "text",
    "BillingCurrency": "text",
    "BillingPeriodEnd": "time",
    "BillingPeriodStart": "time",
    "ChargeCategory": "text",
    "ChargeClass": "text",
    "ChargeDescription": "text",
    "ChargeFrequency": "text",
    "ChargePeriodEnd": "time",
    "ChargePeriodStart": "time",
    "ConsumedQuantity": "number",
    "ConsumedUnit": "text",
    "ContractedCost": "cost",
    "EffectiveCost": "cost",
    "InvoiceIssuerName": "text",
    "ListCost": "cost",
    "PricingCategory": "text",
    "PricingCurrency": "text",
    "PricingQuantity": "number",
    "PricingUnit": "text",
    "ProviderName": "text",
    "PublisherName": "text",
    "RegionId": "text",
    "RegionName": "text",
    "ResourceId": "text",
    "ResourceName": "text",
    "ResourceType": "text",
    "ServiceCategory": "text",
    "ServiceName": "text",
    "ServiceSubcategory": "text",
    "SkuId": "text",
    "SkuMeter": "text",
    "SkuPriceId": "text",
    "SubAccountId": "text",
    "SubAccountName": "text",
    "SubAccountType": "text",
    "Tags": "text",
    "x_CostBasis": "text",
    "x_Endpoint": "text",
    "x_Model": "text",
    "x_Pool": "text",
    "x_Requests": "number",
    "x_Tier": "number",
    "x_Use": "text",
}
"""Every column and what is in it; FOCUS' own in its order, ours with `x_`."""

Row = dict[str, Any]
ISSUER = "budget-ai-factory"
_ZERO = Decimal(0)
_AT_ONCE = 5_000
"""Rows that are in memory at a time: a ledger may hold millions."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Nano-dollars of a time range, by the column that they fill."""

    billed_nusd: int
    effective_nusd: int


def rows(
    connection: Connection,
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    period: Period = "hour",
) -> Iterator[Row]:
    """Everything that was charged and counted from `since` up to `until`, oldest first by kind.

    `connection` must see one moment in all its queries, as `Ledger.read` gives it.
    """
    yield from _requests(connection, settings, since, until, period)
    yield from _jobs(connection, settings, since, until, period)
    yield from _nodes(connection, settings, since, until, "hour" if period == "charge" else period)


def totals(
    connection: Connection, settings: Settings, since: datetime | None, until: datetime | None
) -> Totals:
    """What the rows must add up to, summed by the database."""
    provided = [name for name, model in settings.models.items() if model.engine == "openai"]
    cost = func.coalesce(func.sum(CHARGES.c.cost_nusd), 0)
    charged = select(cost).join(REQUESTS).where(*within(since, until))
    jobs = select(func.coalesce(func.sum(JOB_CHARGES.c.cost_nusd), 0))
    counted = select(func.coalesce(func.sum(NODE_HOURS.c.cost_nusd), 0))
    bought = charged.where(CHARGES.c.model.in_(provided))
    found = [
        int(connection.scalar(query) or 0)
        for query in (
            charged,
            jobs.where(*_between(JOB_CHARGES.c.since, since, until)),
            bought,
            counted.where(*_between(NODE_HOURS.c.starts_at, since, until)),
        )
    ]
    return Totals(found[0] + found[1], found[2] + found[3])


def sums(found: Iterable[Row]) -> Totals:
    """What rows add up to."""
    billed = effective = _ZERO
    for row in found:
        billed += row["BilledCost"]
        effective += row["EffectiveCost"]
    return Totals(int(billed * NANO), int(effective * NANO))


def _requests(
    connection: Connection,
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    period: Period,
) -> Iterator[Row]:
    query = (
        select(
            REQUESTS.c.created_at,
            CHARGES.c.request_id,
            CHARGES.c.team,
            CHARGES.c.endpoint,
            CHARGES.c.tier,
            CHARGES.c.model,
            CHARGES.c.kind,
            CHARGES.c.prompt_tokens,
            CHARGES.c.completion_tokens,
            CHARGES.c.cost_nusd,
            CHARGES.c.latency_ms,
        )
        .join(REQUESTS)
        .where(*within(since, until))
        .order_by(REQUESTS.c.created_at, CHARGES.c.request_id, CHARGES.c.seq)
    )
    charges = connection.execute(query.execution_options(yield_per=_AT_ONCE))
    if period == "charge":
        for each in charges:
            end = each.created_at + timedelta(milliseconds=max(1.0, each.latency_ms))
            tokens = each.prompt_tokens + each.completion_tokens
            key = (each.team, each.endpoint, each.tier, each.model, each.kind)
            span = (each.created_at, end)
            yield _request(settings, span, key, each.cost_nusd, tokens, 1, each.request_id)
        return
    for start, of_period in groupby(charges, lambda each: floor(each.created_at, period)):
        groups: dict[tuple[Any, ...], list[int]] = {}
        for each in of_period:
            key = (each.team, each.endpoint, each.tier, each.model, each.kind)
            group = groups.setdefault(key, [0, 0, 0])
            group[0] += each.cost_nusd
            group[1] += each.prompt_tokens + each.completion_tokens
            group[2] += 1
        for key, (nusd, tokens, count) in groups.items():
            yield _request(settings, (start, _end(start, period)), key, nusd, tokens, count, None)


def _request(
    settings: Settings,
    span: tuple[datetime, datetime],
    key: tuple[Any, ...],
    nusd: int,
    tokens: int,
    count: int,
    request_id: str | None,
) -> Row:
    team, endpoint, tier, model, kind = key
    entry = settings.models.get(model or "")
    bought = entry is not None and entry.engine == "openai"
    what = f"{kind} by {model}" if model else kind
    return (
        _row(span, "allocation", billed=nusd, effective=nusd if bought else 0)
        | {
            "ChargeDescription": f"{count} x {what} for endpoint {endpoint or 'unknown'}",
            "ConsumedQuantity": Decimal(tokens),
            "ConsumedUnit": "Tokens",
            "PricingCategory": "Standard",
            "PricingQuantity": Decimal(tokens),
            "PricingUnit": "Tokens",
            "ResourceId": request_id or model or f"tier-{tier}",
            "ResourceName": model,
            "ResourceType": "Request" if request_id else "Model",
            "ServiceCategory": "AI and Machine Learning",
            "ServiceName": "Model Serving",
            "ServiceSubcategory": "Generative AI",
            "SkuId": model or kind,
            "SkuMeter": kind,
            "SkuPriceId": model or kind,
            "Tags": _tags(endpoint=endpoint, kind=kind),
            "x_Endpoint": endpoint,
            "x_Model": model,
            "x_Requests": Decimal(count),
            "x_Tier": None if tier is None else Decimal(tier),
            "x_Use": kind,
        }
        | _team(team)
    )


def _jobs(
    connection: Connection,
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    period: Period,
) -> Iterator[Row]:
    query = (
        select(JOB_CHARGES)
        .where(*_between(JOB_CHARGES.c.since, since, until))
        .order_by(JOB_CHARGES.c.since, JOB_CHARGES.c.job_id)
    )
    charges = connection.execute(query.execution_options(yield_per=_AT_ONCE))
    for start, of_period in groupby(
        charges, lambda each: each.since if period == "charge" else floor(each.since, period)
    ):
        groups: dict[tuple[str, str, str], list[Any]] = {}
        for each in of_period:
            group = groups.setdefault((each.team, each.job_id, each.pool), [0, 0.0, each.until])
            group[0] += each.cost_nusd
            group[1] += (each.until - each.since).total_seconds()
            group[2] = max(group[2], each.until)
        for (team, job_id, pool), (nusd, seconds, last) in groups.items():
            end = last if period == "charge" else max(_end(start, period), last)
            hours = _hours(seconds)
            yield (
                _row((start, end), "allocation", billed=nusd, effective=0)
                | _place(settings, pool)
                | {
                    "ChargeDescription": f"job {job_id} in pool {pool}",
                    "ConsumedQuantity": hours,
                    "ConsumedUnit": "Hours",
                    "PricingQuantity": hours,
                    "PricingUnit": "Hours",
                    "ProviderName": ISSUER,
                    "PublisherName": ISSUER,
                    "ResourceId": job_id,
                    "ResourceName": job_id,
                    "ResourceType": "Job",
                    "ServiceCategory": "AI and Machine Learning",
                    "ServiceName": "Job Queue",
                    "ServiceSubcategory": "Machine Learning",
                    "SkuId": f"job-{pool}",
                    "SkuPriceId": f"job-{pool}",
                    "SkuMeter": "job",
                    "Tags": _tags(job=job_id, pool=pool),
                    "x_Use": "job",
                }
                | _team(team)
            )


def _nodes(
    connection: Connection,
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    period: Literal["hour", "day"],
) -> Iterator[Row]:
    counted = nodes.spans(connection, *_between(NODE_HOURS.c.starts_at, since, until))
    for start, of_period in groupby(counted, lambda span: floor(span.starts_at, period)):
        spans = list(of_period)
        end = max(_end(start, period), *(span.ends_at for span in spans))
        # A request of a few minutes before may still have been in progress.
        calls = list(nodes.calls(connection, start - timedelta(minutes=10), end))
        for pool in nodes.split(spans, calls).pools:
            parts = {
                "workload": pool.workload_nusd,
                "idle": pool.idle_nusd,
                "overhead": pool.overhead_nusd,
            }
            for use, nusd in parts.items():
                if not nusd and (use != "idle" or pool.total_nusd):
                    continue
                share = nusd / pool.total_nusd if pool.total_nusd else 1.0
                hours = _hours(pool.hours * 3600 * share)
                yield (
                    _row((start, end), "usage", billed=0, effective=nusd)
                    | _place(settings, pool.pool)
                    | {
                        "ChargeDescription": f"{use} of pool {pool.pool}",
                        "ConsumedQuantity": hours,
                        "ConsumedUnit": "Hours",
                        "PricingQuantity": hours,
                        "PricingUnit": "Hours",
                        "ResourceId": pool.pool,
                        "ResourceName": pool.pool,
                        "ResourceType": "Node Pool",
                        "ServiceCategory": "Compute",
                        "ServiceName": "Nodes",
                        "ServiceSubcategory": "Virtual Machines",
                        "SkuId": f"node-{pool.pool}",
                        "SkuPriceId": f"node-{pool.pool}",
                        "SkuMeter": "node-hours",
                        "Tags": _tags(pool=pool.pool, use=use),
                        "x_Use": use,
                    }
                )


def _row(
    span: tuple[datetime, datetime],
    basis: Literal["allocation", "usage"],
    *,
    billed: int,
    effective: int,
) -> Row:
    start, end = span
    month = start.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    cost = Decimal(max(billed, effective)) / NANO
    return dict.fromkeys(COLUMNS) | {
        "BilledCost": Decimal(billed) / NANO,
        "BillingAccountId": ISSUER,
        "BillingAccountName": ISSUER,
        "BillingAccountType": "Factory",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": (month + timedelta(days=32)).replace(day=1),
        "BillingPeriodStart": month,
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": end,
        "ChargePeriodStart": start,
        "ContractedCost": cost,
        "EffectiveCost": Decimal(effective) / NANO,
        "InvoiceIssuerName": ISSUER,
        "ListCost": cost,
        "PricingCurrency": "USD",
        "ProviderName": ISSUER,
        "PublisherName": ISSUER,
        "x_CostBasis": basis,
    }


def _place(settings: Settings, name: str) -> Row:
    pool = settings.pools.get(name)
    provider = pool.provider if isinstance(pool, RentedPool) else "on-premises"
    region = None if pool is None else pool.region
    zones = () if pool is None else pool.zones
    return {
        "AvailabilityZone": zones[0] if len(zones) == 1 else None,
        "PricingCategory": "Dynamic" if pool and pool.market == "spot" else "Standard",
        "ProviderName": provider,
        "PublisherName": provider,
        "RegionId": region,
        "RegionName": region,
        "x_Pool": name,
    }


def _team(team: str) -> Row:
    name = team or "unknown"
    return {"SubAccountId": name, "SubAccountName": name, "SubAccountType": "Team"}


def _tags(**tags: object) -> str:
    return json.dumps({key: str(value) for key, value in tags.items() if value not in (None, "")})


def _hours(seconds: float) -> Decimal:
    return Decimal(round(seconds * 1e6)) / Decimal(3_600_000_000)


def floor(moment: datetime, period: Period) -> datetime:
    """The start of the period in which a moment lies, in UTC."""
    start = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return start if period == "hour" else start.replace(hour=0)


def _end(start: datetime, period: Period) -> datetime:
    return start + (timedelta(hours=1) if period == "hour" else timedelta(days=1))


def _between(
    column: ColumnElement[datetime], since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    found = []
    if since is not None:
        found.append(column >= since)
    if until is not None:
        found.append(column < until)
    return found


def texts(row: Mapping[str, Any]) -> list[str]:
    """A row as CSV fields: UTC times, plain decimals, nothing for what is not there."""
    return [_text(row[name], kind) for name, kind in COLUMNS.items()]


def _text(value: Any, kind: Kind) -> str:
    if value is None:
        return ""
    if kind == "time":
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"{value:f}" if kind in ("cost", "number") else str(value)
