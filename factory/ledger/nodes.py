"""Node-hours in the ledger: who held which node for how long, and what that cost.

    record(ledger, spans)                       # refuses an hour that is counted already
    counted(ledger)                             # until when each machine is counted
    usage(ledger, since, until)
    usage_of(ledger, charges)                   # the same of one request

Allocation prices a request by its model's list price; usage splits what the nodes really cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from factory.ledger import spend
from factory.ledger.errors import LedgerError
from factory.ledger.money import usd
from factory.ledger.records import ChargeRecord
from factory.ledger.schema import CHARGES, NODE_HOURS, REQUESTS, within
from factory.ledger.store import Ledger


@dataclass(frozen=True)
class Hold:
    """What one holder's part of a span cost."""

    kind: str
    """`model`, `job`, `work` or `overhead`."""
    name: str
    nusd: int


@dataclass(frozen=True, kw_only=True)
class NodeSpan:
    """A machine from one moment to another. Raises `LedgerError` for values that make no sense."""

    machine: str
    node_id: str
    pool: str
    zone: str | None
    starts_at: datetime
    ends_at: datetime
    nusd_per_hour: int
    cost_nusd: int
    holds: tuple[Hold, ...] = ()

    def __post_init__(self) -> None:
        if self.ends_at <= self.starts_at:
            raise LedgerError(f"a span of machine '{self.machine}' ends before it begins")
        parts = [hold.nusd for hold in self.holds]
        if self.cost_nusd < 0 or min(parts, default=0) < 0 or sum(parts) > self.cost_nusd:
            raise LedgerError(f"a span of machine '{self.machine}' holds more than it costs")

    @property
    def idle_nusd(self) -> int:
        """What nobody held."""
        return self.cost_nusd - sum(hold.nusd for hold in self.holds)


def record(ledger: Ledger, spans: Iterable[NodeSpan]) -> None:
    """Write spans, all or none. Raises `LedgerError` for time that is counted already."""
    ordered = sorted(spans, key=lambda span: (span.machine, span.starts_at))
    if not ordered:
        return
    with ledger.write() as connection:
        spend.lock(connection)
        until = _counted(connection, {span.machine for span in ordered})
        for span in ordered:
            if span.machine in until and span.starts_at < until[span.machine]:
                raise LedgerError(
                    f"machine '{span.machine}' is counted until {until[span.machine].isoformat()} "
                    "already; is another meter running on this ledger?"
                )
            until[span.machine] = span.ends_at
        rows = [
            {key: value for key, value in asdict(span).items() if key != "holds"}
            | {"holds": [asdict(hold) for hold in span.holds]}
            for span in ordered
        ]
        connection.execute(NODE_HOURS.insert(), rows)


def counted(ledger: Ledger) -> dict[str, datetime]:
    """Until when each machine is counted."""
    with ledger.read() as connection:
        return _counted(connection, None)


def _counted(connection: Any, machines: set[str] | None) -> dict[str, datetime]:
    query = select(NODE_HOURS.c.machine, func.max(NODE_HOURS.c.ends_at)).group_by(
        NODE_HOURS.c.machine
    )
    if machines is not None:
        query = query.where(NODE_HOURS.c.machine.in_(machines))
    return {machine: until for machine, until in connection.execute(query)}


@dataclass(frozen=True)
class PoolUsage:
    """A pool's hours and where their cost went: workload + idle + overhead = total."""

    pool: str
    hours: float
    total_nusd: int
    workload_nusd: int
    idle_nusd: int
    overhead_nusd: int

    @property
    def utilization(self) -> float | None:
        """Workload's part of the total."""
        return self.workload_nusd / self.total_nusd if self.total_nusd else None


@dataclass(frozen=True)
class UsageLine:
    """What one team, endpoint, model or job really used."""

    kind: str
    name: str
    requests: int
    usage_nusd: int
    allocation_nusd: int
    """The same by list price."""


@dataclass(frozen=True)
class Usage:
    """Costs by what the nodes really cost."""

    pools: tuple[PoolUsage, ...]
    lines: tuple[UsageLine, ...]
    requests: Mapping[str, int] = field(default_factory=dict)
    """Nano-dollars by request id."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without the single requests."""
        return {
            "basis": "usage",
            "pools": [asdict(pool) | {"utilization": pool.utilization} for pool in self.pools],
            "lines": [asdict(line) for line in self.lines],
        }


@dataclass(frozen=True)
class Call:
    """One charge of an open model, as far as usage needs it."""

    request_id: str
    team: str
    endpoint: str
    model: str
    starts_at: datetime
    seconds: float
    list_nusd: int


def usage(ledger: Ledger, since: datetime | None = None, until: datetime | None = None) -> Usage:
    """The usage basis of a time range: spans that end in it, requests created in it."""
    where = []
    if since is not None:
        where.append(NODE_HOURS.c.ends_at > since)
    if until is not None:
        where.append(NODE_HOURS.c.starts_at < until)
    with ledger.read() as connection:
        found = list(spans(connection, *where))
        asked = list(calls(connection, since, until))
    return split([clip(span, since, until) for span in found], asked)


def spans(connection: Connection, *where: ColumnElement[bool]) -> Iterator[NodeSpan]:
    """What was counted under these conditions, in the order of its beginning."""
    query = select(NODE_HOURS).where(*where).order_by(NODE_HOURS.c.starts_at)
    for row in connection.execute(query.execution_options(yield_per=5_000)):
        values = {k: v for k, v in row._asdict().items() if k not in {"holds", "id"}}
        yield NodeSpan(**values, holds=tuple(Hold(**hold) for hold in row.holds))


def calls(connection: Connection, since: datetime | None, until: datetime | None) -> Iterator[Call]:
    """The charges of open models whose requests were created from `since` to `until`."""
    query = (
        select(
            CHARGES.c.request_id,
            CHARGES.c.team,
            CHARGES.c.endpoint,
            CHARGES.c.model,
            CHARGES.c.created_at,
            CHARGES.c.latency_ms,
            CHARGES.c.cost_nusd,
        )
        .join(REQUESTS)
        .where(CHARGES.c.model.is_not(None), *within(since, until))
    )
    for request_id, team, endpoint, model, created_at, latency_ms, nusd in connection.execute(
        query
    ):
        yield Call(request_id, team, endpoint, model, created_at, latency_ms / 1000, nusd)


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """What the nodes under one request cost."""

    usage_nusd: int
    """Its part of the workload of its models' nodes."""
    since: datetime
    until: datetime
    """The time that was counted: the meter's spans in which the request was in progress."""
    requests: int
    """Those that share it."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "usage_nusd": self.usage_nusd,
            "usage_usd": usd(self.usage_nusd),
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "requests": self.requests,
        }


def usage_of(ledger: Ledger, charges: Sequence[ChargeRecord]) -> RequestUsage | None:
    """The usage basis of one request, by its charges; None where no node-hours were counted for it.

    That is so for an answer from the cache or a provider, and until the meter's next beat.
    """
    own = {charge.model: charge for charge in charges if charge.model is not None}
    if not own:
        return None
    begin = min(charge.created_at for charge in own.values())
    end = max(each.created_at + timedelta(milliseconds=each.latency_ms) for each in own.values())
    with ledger.read() as connection:
        found = [
            span
            for span in spans(
                connection, NODE_HOURS.c.ends_at > begin, NODE_HOURS.c.starts_at <= end
            )
            if any(hold.kind == "model" and hold.name in own for hold in span.holds)
        ]
        if not found:
            return None
        since = min(span.starts_at for span in found)
        until = max(span.ends_at for span in found)
        asked = [
            call
            for call in calls(connection, min(since, begin), max(until, end))
            if call.model in own
        ]
    request_id = next(iter(own.values())).request_id
    part = split(found, asked).requests.get(request_id)
    if part is None:
        return None
    return RequestUsage(part, since, until, len({call.request_id for call in asked}))


def clip(span: NodeSpan, since: datetime | None, until: datetime | None) -> NodeSpan:
    """The part of a span within a time range; its parts shrink alike, rounded down to idle."""
    starts = max(span.starts_at, since) if since is not None else span.starts_at
    ends = min(span.ends_at, until) if until is not None else span.ends_at
    whole, part = span.ends_at - span.starts_at, ends - starts
    if part == whole:
        return span
    micro = timedelta(microseconds=1)

    def cut(nusd: int) -> int:
        return nusd * (part // micro) // (whole // micro)

    values = {key: getattr(span, key) for key in ("machine", "node_id", "pool", "zone")}
    return NodeSpan(
        **values,
        starts_at=starts,
        ends_at=ends,
        nusd_per_hour=span.nusd_per_hour,
        cost_nusd=cut(span.cost_nusd),
        holds=tuple(Hold(hold.kind, hold.name, cut(hold.nusd)) for hold in span.holds),
    )


def split(spans: Iterable[NodeSpan], calls: Iterable[Call]) -> Usage:
    """Pure: the cost of the spans to workloads, idle and overhead, and to requests.

    A model's node is workload while at least one of its requests is in progress, idle else. That
    workload is split over the requests by list price (evenly where the list says 0).
    """
    by_model: dict[str, list[Call]] = {}
    for call in calls:
        by_model.setdefault(call.model, []).append(call)
    pools: dict[str, list[float]] = {}
    models: dict[str, int] = {}
    jobs: dict[str, int] = {}
    for span in spans:
        seconds, total, workload, overhead = pools.setdefault(span.pool, [0.0, 0, 0, 0])
        for hold in span.holds:
            if hold.kind == "overhead":
                overhead += hold.nusd
            elif hold.kind == "model":
                used = int(hold.nusd * busy(span, by_model.get(hold.name, ())))
                models[hold.name] = models.get(hold.name, 0) + used
                workload += used
            else:
                jobs[hold.name] = jobs.get(hold.name, 0) + hold.nusd
                workload += hold.nusd
        seconds += (span.ends_at - span.starts_at).total_seconds()
        pools[span.pool] = [seconds, total + span.cost_nusd, workload, overhead]
    requests: dict[str, int] = {}
    lines: dict[tuple[str, str], list[int]] = {}
    for model, found in by_model.items():
        parts = _shares(models.get(model, 0), [call.list_nusd for call in found])
        for call, part in zip(found, parts, strict=True):
            requests[call.request_id] = requests.get(call.request_id, 0) + part
            for key in (("team", call.team), ("endpoint", call.endpoint), ("model", model)):
                line = lines.setdefault(key, [0, 0, 0])
                line[0] += 1
                line[1] += part
                line[2] += call.list_nusd
    for job, nusd in jobs.items():
        lines[("job", job)] = [0, nusd, 0]
    return Usage(
        tuple(
            PoolUsage(
                pool,
                seconds / 3600,
                int(total),
                int(workload),
                int(total - workload - overhead),
                int(overhead),
            )
            for pool, (seconds, total, workload, overhead) in sorted(pools.items())
        ),
        tuple(UsageLine(*key, *line) for key, line in sorted(lines.items())),
        requests,
    )


def busy(span: NodeSpan, calls: Iterable[Call]) -> float:
    """The part of a span in which at least one of `calls` is in progress."""
    whole = (span.ends_at - span.starts_at).total_seconds()
    pieces = []
    for call in calls:
        begin = (call.starts_at - span.starts_at).total_seconds()
        low, high = max(0.0, begin), min(whole, begin + call.seconds)
        if high > low:
            pieces.append((low, high))
    covered, reached = 0.0, 0.0
    for low, high in sorted(pieces):
        covered += max(0.0, high - max(low, reached))
        reached = max(reached, high)
    return min(1.0, covered / whole)


def _shares(total: int, weights: list[int]) -> list[int]:
    """`total` in whole parts by weight; what rounding leaves goes to the first ones."""
    if not weights:
        return []
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    for index in range(total - sum(parts)):
        parts[index % len(parts)] += 1
    return parts
