"""What the audit log promises about rows of other tables: that they stay as they were sealed.

    broken(connection, events)   # faults of the rows that these events tell of
    unsealed(connection)         # rows that no event tells of, though one should
    older(connection)            # how many requests are from before the log

Requests with their charges, outcomes, calibrations and decisions about reviews are sealed with a
digest of their content (`audit.pledge`); here it is computed again. Used by `verification`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Column, Connection, Row, func, select

from factory.ledger.audit import CHARGE_FIELDS, DIGEST_VERSION, REQUEST_FIELDS, digest
from factory.ledger.calibrations import Calibration
from factory.ledger.errors import LedgerError
from factory.ledger.outcomes import Outcome
from factory.ledger.reviews import DECISIONS, of_row
from factory.ledger.schema import AUDIT, CALIBRATIONS, CHARGES, OUTCOMES, REQUESTS, REVIEWS

Fault = tuple[int | None, str]
"""The place of a broken event, if it is one, and what is wrong."""

MOST_REASONS = 20
"""More faults than these are not told one by one."""

_KINDS: dict[str, tuple[Column[Any], Callable[[Row[Any]], str]]] = {
    "outcome": (OUTCOMES.c.outcome_id, lambda row: Outcome(**row._asdict()).digest),
    "calibration": (CALIBRATIONS.c.id, lambda row: Calibration(**row._asdict()).digest),
    "review": (REVIEWS.c.review_id, lambda row: of_row(row).digest),
}
_ROW_EVENTS = {
    "outcome": AUDIT.c.action.startswith("outcome."),
    "calibration": AUDIT.c.action.startswith("calibration."),
    "review": AUDIT.c.action == "review.open",
}
"""Of these events there is exactly one a row."""

_OF_REQUESTS = AUDIT.c.action.startswith("request.")
_BEGIN = select(func.min(AUDIT.c.created_at)).where(_OF_REQUESTS).scalar_subquery()


def broken(connection: Connection, events: Sequence[Row[Any]]) -> list[Fault]:
    """What is wrong with the rows that `events` of the log tell of."""
    faults: list[Fault] = []
    for kind in ("request", *_KINDS):
        if own := [event for event in events if _kind(event) == kind]:
            faults += _rows_that_differ(connection, kind, own)
    return faults


def unsealed(connection: Connection) -> list[Fault]:
    """Rows that no event tells of, so that the factory did not make them.

    A request from before the first that has an event is none: the log began with an upgrade.
    """
    event = select(AUDIT.c.seq).where(_OF_REQUESTS, AUDIT.c.subject == REQUESTS.c.request_id)
    query = select(REQUESTS.c.request_id).where(REQUESTS.c.created_at >= _BEGIN, ~event.exists())
    faults: list[Fault] = [
        (None, f"request '{request_id}' has no event: it was not recorded by the factory")
        for request_id in connection.scalars(query.limit(MOST_REASONS))
    ]
    return faults + list(_miscounted(connection))


def older(connection: Connection) -> int:
    """Requests from before the log began: all of them while it tells of none."""
    before = (REQUESTS.c.created_at < _BEGIN) | _BEGIN.is_(None)
    query = select(func.count()).select_from(REQUESTS).where(before)
    return connection.execute(query).scalar_one()


def _miscounted(connection: Connection) -> Iterator[Fault]:
    for kind, (column, _) in _KINDS.items():
        rows = connection.execute(select(func.count()).select_from(column.table)).scalar_one()
        events = select(func.count()).select_from(AUDIT).where(_ROW_EVENTS[kind])
        told = connection.execute(events).scalar_one()
        if rows != told:
            yield None, f"the log tells of {told} {kind}s, but there are {rows}"


def _kind(event: Row[Any]) -> str | None:
    """Of what the event promises that it stays as it is; None when it promises nothing."""
    kind, _, verb = str(event.action).partition(".")
    if kind == "review" and verb not in DECISIONS:
        return None
    return kind


def _rows_that_differ(connection: Connection, kind: str, events: Sequence[Row[Any]]) -> list[Fault]:
    try:
        found = _digests(connection, kind, [_detail(event).get("id") for event in events])
    except (LedgerError, TypeError, ValueError) as error:
        if len(events) > 1:
            return [
                fault for event in events for fault in _rows_that_differ(connection, kind, [event])
            ]
        seq, row_id = events[0].seq, _detail(events[0]).get("id")
        return [(seq, f"{kind} '{row_id}' of event {seq} was changed beyond reading: {error}")]
    faults: list[Fault] = []
    for event in events:
        seq, detail = event.seq, _detail(event)
        row_id = detail.get("id")
        if detail.get("version") != DIGEST_VERSION:
            faults.append((seq, f"event {seq} has a digest of a version that is not known here"))
        elif row_id not in found:
            faults.append((seq, f"{kind} '{row_id}' of event {seq} was deleted"))
        elif found[row_id] != detail.get("digest"):
            parts = " or its charges are" if kind == "request" else " is"
            faults.append((seq, f"{kind} '{row_id}'{parts} not what event {seq} says"))
    return faults


def _digests(connection: Connection, kind: str, ids: Sequence[Any]) -> dict[Any, str]:
    if kind == "request":
        requests, charges = _rows(connection, [item for item in ids if isinstance(item, str)])
        return {item: digest(row, charges.get(item, ())) for item, row in requests.items()}
    column, made = _KINDS[kind]
    wanted = [item for item in ids if type(item) is column.type.python_type]
    query = select(column.table).where(column.in_(wanted))
    return {getattr(row, column.name): made(row) for row in connection.execute(query)}


def _detail(event: Row[Any]) -> dict[str, Any]:
    return event.detail if isinstance(event.detail, dict) else {}


def _rows(
    connection: Connection, ids: Sequence[str]
) -> tuple[dict[str, tuple[Any, ...]], dict[str, list[tuple[Any, ...]]]]:
    asked = select(*(REQUESTS.c[name] for name in REQUEST_FIELDS))
    spent = select(*(CHARGES.c[name] for name in CHARGE_FIELDS))
    spent = spent.order_by(CHARGES.c.request_id, CHARGES.c.seq)
    requests = {
        row.request_id: tuple(row)
        for row in connection.execute(asked.where(REQUESTS.c.request_id.in_(ids)))
    }
    charges = {
        request_id: [tuple(row) for row in group]
        for request_id, group in groupby(
            connection.execute(spent.where(CHARGES.c.request_id.in_(ids))),
            attrgetter("request_id"),
        )
    }
    return requests, charges
