"""A lease in the ledger's database: one holder at a time, and a number that only grows.

    lease = acquire(ledger, "queue", holder, now, ttl_s=15)    # None while somebody else holds it
    with ledger.write() as connection:
        require(connection, lease)                             # first: raises `Deposed`

Clocks may disagree or jump: then a second holder may appear early, but the first one's writes are
refused by the fence, since `require` reads it in the same transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from factory.cluster.errors import ClusterError
from factory.ledger import spend
from factory.ledger.schema import LEASES
from factory.ledger.store import Ledger


class Deposed(ClusterError):
    """Somebody else holds the lease now; stop."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was held when it was last asked for."""

    name: str
    holder: str
    fence: int


def acquire(ledger: Ledger, name: str, holder: str, now: datetime, ttl_s: float) -> Lease | None:
    """Take or renew the lease; None while another holder's has not expired."""
    until = now + timedelta(seconds=ttl_s)
    with ledger.write() as connection:
        spend.lock(connection)
        row = connection.execute(select(LEASES).where(LEASES.c.name == name)).first()
        if row is None:
            connection.execute(
                LEASES.insert().values(name=name, holder=holder, fence=1, expires_at=until)
            )
            return Lease(name, holder, 1)
        mine = row.holder == holder
        # An expiry further ahead than any lease lasts was written by a clock that ran ahead.
        if not mine and now < row.expires_at <= until + timedelta(seconds=ttl_s):
            return None
        fence = row.fence if mine else row.fence + 1
        connection.execute(
            LEASES.update()
            .where(LEASES.c.name == name)
            .values(holder=holder, fence=fence, expires_at=until)
        )
        return Lease(name, holder, fence)


def release(ledger: Ledger, lease: Lease, now: datetime) -> None:
    """Let the next holder in at once."""
    with ledger.write() as connection:
        connection.execute(
            LEASES.update()
            .where(LEASES.c.name == lease.name, LEASES.c.fence == lease.fence)
            .values(holder="", expires_at=now)
        )


def held(ledger: Ledger, name: str, now: datetime) -> bool:
    """Whether anybody holds it."""
    with ledger.read() as connection:
        expires = connection.scalar(
            select(LEASES.c.expires_at).where(LEASES.c.name == name, LEASES.c.holder != "")
        )
    return expires is not None and expires > now


def require(connection: Connection, lease: Lease) -> None:
    """Raise `Deposed` unless the lease still stands; call it first in a transaction."""
    spend.lock(connection)
    fence = connection.scalar(select(LEASES.c.fence).where(LEASES.c.name == lease.name))
    if fence != lease.fence:
        raise Deposed(f"another process has taken over '{lease.name}'")
