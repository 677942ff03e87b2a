"""Outcomes: whether an answer did its job, and how many human minutes it still took.

    record_outcome(ledger, Outcome(outcome_id="out-1", request_id="req-1", created_at=now,
                                   success=True, human_minutes=1.5, reporter="crm"))
    latest(ledger, "req-1").success

An outcome is never changed; a later one about the same request takes its place in the reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, select

from factory.ledger.audit import Event, fingerprint, pledge, seal
from factory.ledger.errors import LedgerError
from factory.ledger.schema import OUTCOMES, REQUESTS
from factory.ledger.text import NAME_LENGTH, PROSE_LENGTH, check_name, stored

if TYPE_CHECKING:
    from factory.ledger.store import Ledger

MAX_MINUTES = 100_000.0
_MS_PER_MINUTE = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Whether an answer did its job. Raises `LedgerError` for values that make no sense."""

    outcome_id: str
    """Chosen by the reporter; reporting it again is harmless."""
    request_id: str
    created_at: datetime
    success: bool
    human_minutes: float = 0.0
    """Time people spent on it, from 0; kept to the millisecond."""
    reporter: str = ""
    """A key_id or the name of a person."""
    comment: str = ""

    def __post_init__(self) -> None:
        check_name("outcome_id", self.outcome_id)
        check_name("request_id", self.request_id)
        if not isinstance(self.created_at, datetime) or self.created_at.tzinfo is None:
            raise LedgerError(
                f"created_at must be a datetime with a time zone, not {self.created_at!r}"
            )
        if not isinstance(self.success, bool):
            raise LedgerError(f"success must be true or false, not {self.success!r}")
        minutes = self.human_minutes
        if isinstance(minutes, bool) or not isinstance(minutes, int | float):
            raise LedgerError(f"human_minutes must be a number, not {minutes!r}")
        if not math.isfinite(minutes) or not 0 <= minutes <= MAX_MINUTES:
            raise LedgerError(
                f"human_minutes must be from 0 to {MAX_MINUTES:.0f} minutes, not {minutes!r}"
            )
        object.__setattr__(self, "created_at", self.created_at.astimezone(UTC))
        object.__setattr__(self, "human_minutes", round(minutes * _MS_PER_MINUTE) / _MS_PER_MINUTE)
        object.__setattr__(self, "reporter", stored(self.reporter, NAME_LENGTH))
        object.__setattr__(self, "comment", stored(self.comment, PROSE_LENGTH))

    @property
    def human_ms(self) -> int:
        """The human time in whole milliseconds, which add up exactly."""
        return round(self.human_minutes * _MS_PER_MINUTE)

    @property
    def digest(self) -> str:
        """What the audit log keeps of it."""
        return fingerprint(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {"created_at": self.created_at.isoformat()}


def record_outcome(ledger: Ledger, outcome: Outcome, team: str | None = None) -> bool:
    """Record an outcome; False when it was recorded before, whatever the time of the repetition.

    Raises `LedgerError` when there is no such request (or, with `team`, none of that team), or
    when the outcome_id is taken by another outcome.
    """
    row = {item.name: getattr(outcome, item.name) for item in fields(outcome)}
    # Reports about one request wait for each other, so that a repetition sees the first.
    asked = select(REQUESTS.c.team).where(REQUESTS.c.request_id == outcome.request_id)
    known = select(OUTCOMES).where(OUTCOMES.c.outcome_id == outcome.outcome_id)
    with ledger.write() as connection:
        owner = connection.execute(asked.with_for_update()).first()
        if owner is None or team not in (None, owner.team):
            raise LedgerError(
                f"there is no request '{outcome.request_id}'; the id stands in the answer's "
                "x-factory-request-id header"
            )
        if before := connection.execute(known).first():
            if before._asdict() | {"created_at": outcome.created_at} != row:
                raise LedgerError(
                    f"outcome '{outcome.outcome_id}' is already recorded with other content; "
                    "an outcome never changes, so report a new one"
                )
            return False
        connection.execute(OUTCOMES.insert().values(row))
        seal(connection, [_event(outcome)])
    return True


def latest(ledger: Ledger, request_id: str) -> Outcome | None:
    """The outcome of a request that counts: the one reported last; None when none was."""
    query = select(OUTCOMES).where(OUTCOMES.c.request_id == request_id)
    query = query.order_by(OUTCOMES.c.created_at.desc(), OUTCOMES.c.outcome_id.desc())
    with ledger.read() as connection:
        row = connection.execute(query.limit(1)).first()
    return None if row is None else Outcome(**row._asdict())


def that_count(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """By request_id, the outcome that counts: the one reported last."""
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        other = found.get(outcome.request_id)
        if other is None or _order(outcome) > _order(other):
            found[outcome.request_id] = outcome
    return found


def counts_for(request_id: ColumnElement[str]) -> ColumnElement[bool]:
    """`that_count` as the condition of a join with OUTCOMES: at most one row a request."""
    other = OUTCOMES.alias("other")
    newest = (
        select(other.c.outcome_id)
        .where(other.c.request_id == request_id)
        .order_by(other.c.created_at.desc(), other.c.outcome_id.desc())
        .limit(1)
        .correlate_except(other)
        .scalar_subquery()
    )
    return OUTCOMES.c.outcome_id == newest


def _order(outcome: Outcome) -> tuple[datetime, bytes]:
    return outcome.created_at, outcome.outcome_id.encode()


def _event(outcome: Outcome) -> Event:
    return Event(
        created_at=outcome.created_at,
        actor=outcome.reporter or "anonymous",
        action="outcome.success" if outcome.success else "outcome.failure",
        subject=outcome.request_id,
        detail=pledge(outcome.outcome_id, outcome.digest)
        | {"human_minutes": outcome.human_minutes},
    )
