"""The review queue: requests and answers that wait for a person.

    open_review(ledger, Review(review_id="rev-1", created_at=now, request_id="req-1",
                               team="support", endpoint="helpdesk", stage="input",
                               reasons=("asks for a refund above 500 EUR",), request=body))
    decide(ledger, "rev-1", "approve", by="ana", note="a known customer", at=now)
    if claim(ledger, "rev-1", at=now):                       # in one gateway only
        finish(ledger, "rev-1", {"reply": …}, at=now)        # what the waiting client polls
    get(ledger, "rev-1").status                              # "done"

    pending → approved | edited → running → done | failed
            → rejected                    (whatever waits too long → expired)

Each step is one conditional update, so of two people or two gateways exactly one wins, and each
is sealed in the audit log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, func, select, update

from factory.ledger.audit import Event, fingerprint, pledge, seal
from factory.ledger.errors import LedgerError
from factory.ledger.schema import REVIEWS
from factory.ledger.store import Ledger
from factory.ledger.text import PROSE_LENGTH, check_name, stored

Stage = Literal["input", "output", "budget"]
Decision = Literal["approve", "edit", "reject"]
Status = Literal[
    "pending", "approved", "edited", "rejected", "running", "done", "failed", "expired"
]

DECISIONS: tuple[Decision, ...] = get_args(Decision)

MAX_TEXT = 200_000
"""Longest edited text, in characters."""

_AFTER: dict[Decision, Status] = {"approve": "approved", "edit": "edited", "reject": "rejected"}
_RUNNABLE = ("approved", "edited")
_OPEN = ("pending", "approved", "edited", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A request or an answer that waits for a person. Raises `LedgerError` for nonsense."""

    review_id: str
    created_at: datetime
    request_id: str
    team: str
    endpoint: str
    stage: Stage
    """What is in question: the prompt, the model's answer, or that no budget is left."""
    reasons: Sequence[str]
    """Why it waits, in order; stored as a tuple."""
    request: Mapping[str, Any]
    """The body as the client sent it, or as the guard redacted it."""
    key_id: str | None = None
    answer: Mapping[str, Any] | None = None
    """The answer in question; only at the stage `output`."""
    status: Status = "pending"
    decided_at: datetime | None = None
    decided_by: str | None = None
    note: str | None = None
    text: str | None = None
    """What a person wrote instead: of the prompt (`input`) or of the answer (`output`)."""
    result: Mapping[str, Any] | None = None
    """The final reply, or the error of one that failed; None until then."""

    def __post_init__(self) -> None:
        for name in ("review_id", "request_id"):
            check_name(name, getattr(self, name))
        _check_choice("stage", self.stage, get_args(Stage))
        _check_choice("status", self.status, get_args(Status))
        _check_time(self.created_at)
        reasons = tuple(stored(str(reason), PROSE_LENGTH) for reason in self.reasons)
        object.__setattr__(self, "reasons", reasons)
        for name in ("request", "answer", "result"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    @property
    def pending(self) -> bool:
        """True while a person must decide."""
        return self.status == "pending"

    @property
    def digest(self) -> str:
        """What the audit log keeps of a decision: all that does not change after it."""
        lasting = {"review_id", "created_at", "request_id", "team", "endpoint", "key_id", "stage"}
        lasting |= {"reasons", "request", "answer", "decided_at", "decided_by", "note", "text"}
        plain = self.as_dict()
        return fingerprint({name: plain[name] for name in lasting})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        decided = self.decided_at and self.decided_at.isoformat()
        return plain | {
            "created_at": self.created_at.isoformat(),
            "decided_at": decided,
            "reasons": list(self.reasons),
        }


def open_review(ledger: Ledger, review: Review) -> None:
    """Put a pending review into the queue. Raises `LedgerError` when its id is taken."""
    if not review.pending:
        raise LedgerError(f"review '{review.review_id}' is {review.status}; open a pending one")
    row = {item.name: getattr(review, item.name) for item in fields(review)}
    del row["text"]
    with ledger.write() as connection:
        if _load(connection, review.review_id) is not None:
            raise LedgerError(f"there is a review '{review.review_id}' already; use a new id")
        connection.execute(REVIEWS.insert().values(row | {"reasons": list(review.reasons)}))
        _seal(connection, review, "open", review.key_id or "anonymous", review.created_at)


def get(ledger: Ledger, review_id: str) -> Review | None:
    """A review, or None when there is none of that id."""
    with ledger.read() as connection:
        return _load(connection, review_id)


def list_reviews(
    ledger: Ledger, team: str | None = None, status: str | None = None, limit: int = 100
) -> list[Review]:
    """The oldest `limit` reviews of one team or of all, in one status or in any.

    Raises `LedgerError` for a status that does not exist.
    """
    query = select(REVIEWS).order_by(REVIEWS.c.created_at, REVIEWS.c.review_id).limit(limit)
    if team is not None:
        query = query.where(REVIEWS.c.team == team)
    if status is not None:
        _check_choice("status", status, get_args(Status))
        query = query.where(REVIEWS.c.status == status)
    with ledger.read() as connection:
        return [of_row(row) for row in connection.execute(query)]


def decide(
    ledger: Ledger,
    review_id: str,
    decision: Decision,
    by: str,
    note: str,
    text: str | None = None,
    *,
    at: datetime,
) -> Review:
    """Decide a pending review, once and for ever; `text` goes with `edit` and only with it.

    Raises `LedgerError` when there is no such review, when it was decided already (it says by
    whom), or when the decision does not fit.
    """
    _check_choice("decision", decision, DECISIONS)
    check_name("by", by)
    _check_time(at)
    note = stored(note, PROSE_LENGTH)
    if (decision == "edit") != bool(text):
        raise LedgerError("an edit needs a text, and only an edit has one")
    if text is not None and len(text) > MAX_TEXT:
        raise LedgerError(f"the text has {len(text)} characters; at most {MAX_TEXT} are kept")
    with ledger.write() as connection:
        found = _required(connection, review_id)
        if decision == "edit" and found.stage == "budget":
            raise LedgerError("a review about a budget is approved or rejected, not edited")
        change = {
            "status": _AFTER[decision],
            "decided_at": at,
            "decided_by": by,
            "note": note,
            "result": None if text is None else {"text": text, "result": None},
        }
        decided = _step(connection, review_id, ("pending",), change)
        if decided is None:
            now = _required(connection, review_id)
            who = f" by {now.decided_by}" if now.decided_by else ""
            raise LedgerError(f"review '{review_id}' was decided already: {now.status}{who}")
        promised = pledge(review_id, decided.digest)
        _seal(connection, decided, decision, by, at, note=note[:200], **promised)
    return decided


def claim(ledger: Ledger, review_id: str, *, at: datetime, by: str = "system") -> Review | None:
    """Take an approved or edited review to run it; None when another took it, or it may not run.

    Raises `LedgerError` when there is no such review.
    """
    with ledger.write() as connection:
        taken = _step(connection, review_id, _RUNNABLE, {"status": "running"})
        if taken is None:
            _required(connection, review_id)
            return None
        _seal(connection, taken, "run", by, at)
    return taken


def finish(
    ledger: Ledger,
    review_id: str,
    result: Mapping[str, Any],
    *,
    at: datetime,
    failed: bool = False,
    by: str = "system",
) -> Review:
    """Keep what came of a running review: the reply, or with `failed` the error, as plain JSON.

    Raises `LedgerError` when it is not running (it expired, or was finished already).
    """
    plain = _plain("result", result)
    with ledger.write() as connection:
        found = _required(connection, review_id)
        change = {
            "status": "failed" if failed else "done",
            "result": {"text": found.text, "result": plain},
        }
        done = _step(connection, review_id, ("running",), change)
        if done is None:
            now = _required(connection, review_id)
            raise LedgerError(f"review '{review_id}' is {now.status}, not running")
        _seal(connection, done, done.status, by, at, result=fingerprint(plain))
    return done


def expire(ledger: Ledger, before: datetime, *, at: datetime) -> list[str]:
    """Give up what has waited since `before`: for a person, for a gateway, or in one that died.

    Returns the ids. What was decided waits anew from its decision on.
    """
    waiting = select(REVIEWS.c.review_id).where(
        REVIEWS.c.status.in_(_OPEN),
        func.coalesce(REVIEWS.c.decided_at, REVIEWS.c.created_at) < before,
    )
    with ledger.write() as connection:
        ids = list(connection.scalars(waiting.order_by(REVIEWS.c.review_id)))
        late = [_step(connection, item, _OPEN, {"status": "expired"}, before) for item in ids]
        gone = [review for review in late if review is not None]
        seal(connection, [_event(review, "expire", "system", at) for review in gone])
    return [review.review_id for review in gone]


def _step(
    connection: Connection,
    review_id: str,
    allowed: Sequence[str],
    change: Mapping[str, Any],
    before: datetime | None = None,
) -> Review | None:
    """The changed review; None when its status is none of `allowed` any more."""
    query = update(REVIEWS).where(REVIEWS.c.review_id == review_id, REVIEWS.c.status.in_(allowed))
    if before is not None:
        since = func.coalesce(REVIEWS.c.decided_at, REVIEWS.c.created_at)
        query = query.where(since < before)
    row = connection.execute(query.values(**change).returning(*REVIEWS.c)).first()
    return None if row is None else of_row(row)


def _seal(
    connection: Connection, review: Review, verb: str, actor: str, at: datetime, **more: Any
) -> None:
    seal(connection, [_event(review, verb, actor, at, **more)])


def _event(review: Review, verb: str, actor: str, at: datetime, **more: Any) -> Event:
    return Event(
        created_at=at,
        actor=actor,
        action=f"review.{verb}",
        subject=review.review_id,
        detail={"request_id": review.request_id, "stage": review.stage, "status": review.status}
        | {name: value for name, value in more.items() if value},
    )


def _load(connection: Connection, review_id: str) -> Review | None:
    row = connection.execute(select(REVIEWS).where(REVIEWS.c.review_id == review_id)).first()
    return None if row is None else of_row(row)


def _required(connection: Connection, review_id: str) -> Review:
    found = _load(connection, review_id)
    if found is None:
        raise LedgerError(f"there is no review '{review_id}'; `factory reviews list` shows all")
    return found


def of_row(row: Row[Any]) -> Review:
    """The review that a row of REVIEWS holds."""
    content = row._asdict()
    kept = content.pop("result") or {}
    return Review(**content, text=kept.get("text"), result=kept.get("result"))


def _plain(name: str, value: Any) -> Any:
    try:
        plain = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(f"{name} must be plain JSON without NaN: {error}") from error
    if not isinstance(plain, dict) and (name == "request" or plain is not None):
        raise LedgerError(f"{name} must be a JSON object, not {type(value).__name__}")
    return plain


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise LedgerError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _check_time(value: datetime) -> None:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise LedgerError(f"a time must be a datetime with a time zone, not {value!r}")
