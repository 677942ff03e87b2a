"""When nodes of a spot zone could be had, and for what: seen by the provider and the node meter.

    observe(ledger, [Observation(at=now, pool="spot", zone="us-east-2a", up=False,
                                 source="stock-out")])
    observations(ledger, "spot", since)         # oldest first
    prices(ledger, now)                         # {"spot": 410_000_000}, where a provider told

A row is one look; between two of them the older one holds. Rows can only be added.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from factory.ledger.schema import ZONE_OBSERVATIONS as SEEN
from factory.ledger.store import Ledger

REPEAT = timedelta(minutes=15)
"""What was seen already is written again after this time, so that it is known to be fresh."""
PRICE_HOLDS = timedelta(hours=6)
"""An older price is not believed any more."""
_COLUMNS = [column for column in SEEN.c if column.name != "id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Whether a node of a zone could be had at one moment."""

    at: datetime
    pool: str
    zone: str
    """The zone's name; the pool's where nobody names zones."""
    up: bool
    source: str
    """How that is known: `launched`, `running`, `stock-out` or `reclaimed`."""
    nusd_per_hour: int | None = None
    """What a node costs there now; None where the provider does not say."""


def observe(ledger: Ledger, seen: Iterable[Observation]) -> int:
    """Write what is news; returns how many rows that were. Raises `LedgerUnavailable`.

    News is a change, a price, or what was seen before but not within `REPEAT`.
    """
    ordered = sorted(seen, key=lambda each: each.at)
    if not ordered:
        return 0
    with ledger.write() as connection:
        last = {
            (each.pool, each.zone): (each.at, each.up, each.nusd_per_hour)
            for each in newest(connection)
        }
        fresh = []
        for each in ordered:
            at, up, price = last.get((each.pool, each.zone), (None, None, None))
            known = (
                at is not None
                and up == each.up
                and each.nusd_per_hour in (None, price)
                and each.at - at < REPEAT
            )
            if known or (at is not None and each.at <= at):
                continue
            last[(each.pool, each.zone)] = (each.at, each.up, each.nusd_per_hour)
            fresh.append(asdict(each))
        if fresh:
            connection.execute(SEEN.insert(), fresh)
    return len(fresh)


def newest(connection: Connection) -> list[Observation]:
    """The last look at every zone."""
    last = select(func.max(SEEN.c.id)).group_by(SEEN.c.pool, SEEN.c.zone)
    rows = connection.execute(select(*_COLUMNS).where(SEEN.c.id.in_(last)))
    return [Observation(**row._mapping) for row in rows]


def observations(ledger: Ledger, pool: str, since: datetime | None = None) -> list[Observation]:
    """What was seen of a pool's zones, oldest first; with `since` also each zone's last before."""
    where = [SEEN.c.pool == pool]
    if since is not None:
        before = (
            select(func.max(SEEN.c.id))
            .where(SEEN.c.pool == pool, SEEN.c.at < since)
            .group_by(SEEN.c.zone)
        )
        where.append((SEEN.c.at >= since) | SEEN.c.id.in_(before))
    with ledger.read() as connection:
        rows = connection.execute(select(*_COLUMNS).where(*where).order_by(SEEN.c.at, SEEN.c.id))
        return [Observation(**row._mapping) for row in rows]


def prices(ledger: Ledger, now: datetime) -> dict[str, int]:
    """Nano-dollars for a node and hour by pool: the cheapest zone that is up, as last told."""
    newest = (
        select(func.max(SEEN.c.id))
        .where(SEEN.c.nusd_per_hour.is_not(None), SEEN.c.at > now - PRICE_HOLDS, SEEN.c.at <= now)
        .group_by(SEEN.c.pool, SEEN.c.zone)
    )
    query = (
        select(SEEN.c.pool, func.min(SEEN.c.nusd_per_hour))
        .where(SEEN.c.id.in_(newest), SEEN.c.up)
        .group_by(SEEN.c.pool)
    )
    with ledger.read() as connection:
        return {pool: int(price) for pool, price in connection.execute(query)}
