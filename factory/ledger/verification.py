"""Whether the audit log still is what the factory wrote, and the requests still are what it says.

    found = verify(ledger, anchor=Anchor.parse("1042:9f86…"))
    found.ok, found.first_broken_seq, found.reasons

The chain shows a change, a gap or an addition by itself. What it cannot show is that its end was
cut off, or that the owner of the database wrote it anew from some event on: for that, keep an
anchor (`factory audit anchor`) where the database's owner cannot write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from factory.ledger.audit import GENESIS, Anchor, chained
from factory.ledger.pledges import MOST_REASONS, Fault, broken, older, unsealed
from factory.ledger.schema import AUDIT
from factory.ledger.store import Ledger

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found."""

    ok: bool
    checked: int
    """Events looked at."""
    first_broken_seq: int | None
    """Place of the first event that does not hold; None also when a request has no event."""
    reasons: tuple[str, ...]
    """What does not hold, the first twenty."""
    older: int
    """Requests from before the log, which it says nothing about. It grows only when a beginning
    of the log is lost."""
    head: Anchor
    """The newest event; `0:000…` of an empty log."""


def verify(ledger: Ledger, anchor: Anchor | None = None) -> Verification:
    """Walk the chain from its first event, and compare the rows it tells of with their digests.

    Reads one moment of the database in chunks, so memory stays small.
    """
    faults: list[Fault] = []
    checked, previous, last = 0, GENESIS, 0
    with ledger.read() as connection:
        try:
            for chunk in _chunks(connection):
                faults += broken(connection, chunk)
                for row in chunk:
                    checked += 1
                    if fault := _fault(row, last, previous, anchor):
                        faults.append(fault)
                    last, previous = row.seq, row.hash
        except ValueError as error:
            faults.append((last + 1, f"what follows event {last} cannot be read: {error}"))
        faults += unsealed(connection)
        before = older(connection)
    if anchor is not None and anchor.seq > last:
        faults.append((last + 1, f"the log ends at event {last}, before the anchor {anchor.seq}"))
    places = [seq for seq, _ in faults if seq is not None]
    return Verification(
        ok=not faults,
        checked=checked,
        first_broken_seq=min(places, default=None),
        reasons=tuple(fault for _, fault in faults[:MOST_REASONS]),
        older=before,
        head=Anchor(last, previous),
    )


def _chunks(connection: Connection) -> Iterator[list[Row[Any]]]:
    """All events by their place. Raises `ValueError` at one that is not even readable."""
    query, size = select(AUDIT).order_by(AUDIT.c.seq), _CHUNK
    while True:
        try:
            rows = list(connection.execute(query.limit(size)))
        except ValueError:
            if size == 1:
                raise
            size = 1
            continue
        if not rows:
            return
        yield rows
        query = select(AUDIT).where(AUDIT.c.seq > rows[-1].seq).order_by(AUDIT.c.seq)


def _fault(row: Row[Any], last: int, previous: str, anchor: Anchor | None) -> Fault | None:
    if row.seq != last + 1:
        return last + 1, f"event {last + 1} is missing: event {last} is followed by {row.seq}"
    if row.previous_hash != previous:
        return row.seq, f"event {row.seq} does not follow from event {last}"
    try:
        unchanged = row.hash == chained(previous, row.seq, row)
    except (TypeError, ValueError):
        unchanged = False
    if not unchanged:
        return row.seq, f"event {row.seq} was changed: its content does not give its hash"
    if anchor is not None and row.seq == anchor.seq and row.hash != anchor.hash:
        return row.seq, f"event {row.seq} is not the anchored one: the log was written anew"
    return None
