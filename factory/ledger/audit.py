"""The audit log: every decision once, each chained to the one before by its hash.

    with ledger.write() as connection:
        ...
        seal(connection, [of_request(request, charges)])   # last in the transaction
    events(ledger, action="review", limit=20)
    anchor = head(ledger)   # kept elsewhere, it proves later that nothing before it was rewritten

An event's hash is SHA-256 over the previous hash and the event's canonical JSON (RFC 8785 in
spirit: sorted keys, no spaces, UTF-8), so no event can be changed, moved, added or removed in the
middle without breaking all that follow. A request's event holds a digest of the request with its
charges, and so do those of outcomes, reviews and calibrations: `verification` computes them again
from the tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, func, select

from factory.ledger.errors import LedgerError
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.schema import AUDIT
from factory.ledger.text import check_name

if TYPE_CHECKING:
    from factory.ledger.store import Ledger

GENESIS = "0" * 64
"""The previous hash of the first event."""

_LOCK = 0x6175646974  # "audit" in ASCII: a key for PostgreSQL's advisory locks
_LOCKED = select(func.pg_advisory_xact_lock(_LOCK))
_APPEND = AUDIT.insert()
_HEAD = select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)

DIGEST_VERSION = 1
"""Says which fields a digest covers. A field added to the records needs a new version, since the
digests of events sealed before do not cover it."""

REQUEST_FIELDS = (
    *("request_id", "created_at", "team", "endpoint", "key_id", "status", "http_status", "tier"),
    *("model", "model_version", "cache", "degraded", "confidence", "prompt_tokens"),
    *("completion_tokens", "cost_nusd", "top_tier_nusd", "latency_ms", "overhead_ms", "reasons"),
    *("error", "tags"),
)
CHARGE_FIELDS = (
    *("charge_id", "request_id", "seq", "created_at", "team", "endpoint", "tier", "model", "kind"),
    *("prompt_tokens", "completion_tokens", "cost_nusd", "latency_ms", "reason"),
)
_request_values = attrgetter(*REQUEST_FIELDS)
_charge_values = attrgetter(*CHARGE_FIELDS)


def _instant(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError(f"{type(value).__name__} is not plain JSON")


_canonical = json.JSONEncoder(
    sort_keys=True,
    separators=(",", ":"),
    allow_nan=False,
    default=_instant,
    check_circular=False,
).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One decision: who did what to which thing. Raises `LedgerError` for what cannot be kept."""

    created_at: datetime
    actor: str
    """A key_id, the name of a person, or `system`."""
    action: str
    """`request.ok`, `review.approve` …: what the thing is, and what was done."""
    subject: str
    """The id of the thing."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON; a digest instead of anything large or personal."""

    def __post_init__(self) -> None:
        if not isinstance(self.created_at, datetime) or self.created_at.tzinfo is None:
            raise LedgerError(
                f"an event's created_at must be a datetime with a time zone, "
                f"not {self.created_at!r}"
            )
        for name in ("actor", "action", "subject"):
            check_name(f"an event's {name}", getattr(self, name))
        try:
            plain = json.loads(_canonical(self.detail))
        except (TypeError, ValueError, RecursionError) as error:
            raise LedgerError(
                f"an event's detail must be plain JSON without NaN: {error}"
            ) from error
        object.__setattr__(self, "detail", plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEvent(Event):
    """An event in its place of the chain."""

    seq: int
    """Place in the chain, from 1 and without gaps."""
    previous_hash: str
    hash: str
    """SHA-256 in hex."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The newest event's place and hash, to keep where the database's owner cannot write."""

    seq: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """From `SEQ:HASH`. Raises `LedgerError`."""
        seq, colon, digest = text.strip().partition(":")
        if not (colon and seq.isdecimal() and seq.isascii() and len(seq) < 20):
            raise LedgerError(
                f"an anchor is SEQ:HASH as `factory audit anchor` prints it: {text!r}"
            )
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise LedgerError(f"the anchor's hash must be 64 hexadecimal digits, not {digest!r}")
        return cls(int(seq), digest)

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def of_request(request: RequestRecord, charges: Sequence[ChargeRecord]) -> Event:
    """The event of a settled request: what was decided, and a digest of its rows."""
    parts = [_charge_values(charge) for charge in sorted(charges, key=attrgetter("seq"))]
    return Event(
        created_at=request.created_at,
        actor=request.key_id or "anonymous",
        action=f"request.{request.status}",
        subject=request.request_id,
        detail={
            **pledge(request.request_id, digest(_request_values(request), parts)),
            "team": request.team,
            "endpoint": request.endpoint,
            "http_status": request.http_status,
            "tier": request.tier,
            "model": request.model,
            "cost_nusd": request.cost_nusd,
        },
    )


def fingerprint(content: Any) -> str:
    """SHA-256 in hex of the canonical JSON of `content`, to put into an event in its place."""
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def pledge(row_id: str | int, content_digest: str) -> dict[str, Any]:
    """The part of an event's detail by which `verification` finds that row `row_id` was changed."""
    return {"version": DIGEST_VERSION, "id": row_id, "digest": content_digest}


def seal(connection: Connection, events: Sequence[Event]) -> None:
    """Append `events` to the chain, in their order, within the caller's write transaction.

    Call it last in the transaction: from here to the commit it holds the chain, so that two
    writers make one chain (PostgreSQL: an advisory lock; SQLite: its one write lock).
    """
    if not events:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCKED)
    newest = connection.execute(_HEAD).first()
    last, previous = (newest.seq, newest.hash) if newest else (0, GENESIS)
    rows = []
    for seq, event in enumerate(events, last + 1):
        current = chained(previous, seq, event)
        rows.append(
            {
                "seq": seq,
                "created_at": event.created_at,
                "actor": event.actor,
                "action": event.action,
                "subject": event.subject,
                "detail": event.detail,
                "previous_hash": previous,
                "hash": current,
            }
        )
        previous = current
    connection.execute(_APPEND, rows)


def head(ledger: Ledger) -> Anchor:
    """The newest event; `0:000…` of an empty log."""
    with ledger.read() as connection:
        newest = connection.execute(_HEAD).first()
    return Anchor(newest.seq, newest.hash) if newest else Anchor(0, GENESIS)


def events(
    ledger: Ledger,
    *,
    since: datetime | None = None,
    actor: str | None = None,
    action: str | None = None,
    subject: str | None = None,
    limit: int = 100,
) -> list[SealedEvent]:
    """The newest `limit` events, oldest first, that fit; an `action` of `request` fits
    `request.ok` too."""
    query = select(AUDIT).order_by(AUDIT.c.seq.desc()).limit(limit)
    if since is not None:
        query = query.where(AUDIT.c.created_at >= since)
    if actor is not None:
        query = query.where(AUDIT.c.actor == actor)
    if subject is not None:
        query = query.where(AUDIT.c.subject == subject)
    if action is not None:
        query = query.where(
            (AUDIT.c.action == action) | AUDIT.c.action.startswith(f"{action}.", autoescape=True)
        )
    with ledger.read() as connection:
        return [SealedEvent(**row._asdict()) for row in connection.execute(query)][::-1]


def chained(previous: str, seq: int, event: Event | Row[Any]) -> str:
    """The hash of `event` at place `seq` after an event with the hash `previous`."""
    content = [seq, event.created_at, event.actor, event.action, event.subject, event.detail]
    return hashlib.sha256(f"{previous}{_canonical(content)}".encode()).hexdigest()


def digest(request: tuple[Any, ...], charges: Sequence[tuple[Any, ...]]) -> str:
    """SHA-256 of a request's `REQUEST_FIELDS` and its charges' `CHARGE_FIELDS`, by `seq`.

    Empty tags are left out, so that a request without any has the digest that it had before there
    were tags.
    """
    return fingerprint([request if request[-1] else request[:-1], charges])
