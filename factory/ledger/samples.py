"""What the router saw of past requests, to learn from.

    with ledger.write() as connection:
        keep_many(connection, [Sample(request_id="req-1", created_at=now, endpoint="helpdesk",
                                      embedding=vector.astype("<f2").tobytes(),
                                      attempts=(Attempt(tier=1, model="smollm2-135m",
                                                        confidence=0.4, accepted=False,
                                                        cost_nusd=900),))])
    rows = load(ledger, "helpdesk", since, limit=50_000)   # with the outcome, where reported

No prompt is kept, only its embedding; `forget_before` bounds how long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from factory.ledger.errors import LedgerError
from factory.ledger.outcomes import counts_for
from factory.ledger.schema import OUTCOMES, SAMPLES
from factory.ledger.store import Ledger
from factory.ledger.text import check_name

MAX_EMBEDDING_BYTES = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One tier's try at a request. Raises `LedgerError` for values that make no sense."""

    tier: int
    model: str
    accepted: bool
    """True for the answer that was given."""
    cost_nusd: int
    confidence: float | None = None
    """The judge's score of the answer; None where it was not judged."""

    def __post_init__(self) -> None:
        check_name("an attempt's model", self.model)
        if type(self.tier) is not int or not 0 <= self.tier < 100:
            raise LedgerError(f"an attempt's tier must be an integer from 0, not {self.tier!r}")
        if type(self.cost_nusd) is not int or not 0 <= self.cost_nusd < 2**63:
            raise LedgerError(f"an attempt's cost_nusd must not be {self.cost_nusd!r}")
        if self.confidence is not None and not math.isfinite(self.confidence):
            raise LedgerError(f"an attempt's confidence must be finite, not {self.confidence!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the router saw of one request. Raises `LedgerError` for values that make no sense."""

    request_id: str
    created_at: datetime
    endpoint: str
    embedding: bytes
    """Of the prompt: a little-endian float16 array; empty where none was made."""
    attempts: Sequence[Attempt]
    """In the order they were made; stored as a tuple."""

    def __post_init__(self) -> None:
        check_name("a sample's request_id", self.request_id)
        check_name("a sample's endpoint", self.endpoint)
        if self.created_at.tzinfo is None:
            raise LedgerError("a sample's created_at must have a time zone")
        if len(self.embedding) > MAX_EMBEDDING_BYTES or len(self.embedding) % 2:
            raise LedgerError(
                f"a sample's embedding must be up to {MAX_EMBEDDING_BYTES // 2} float16, "
                f"not {len(self.embedding)} bytes"
            )
        object.__setattr__(self, "attempts", tuple(self.attempts))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSample(Sample):
    """A sample with the outcome that counts."""

    success: bool | None
    """None where no outcome was reported."""
    human_minutes: float = 0.0


def keep_many(connection: Connection, samples: Iterable[Sample]) -> None:
    """Keep samples in the caller's write transaction; what is kept for a request_id stays."""
    rows = {
        sample.request_id: {
            "request_id": sample.request_id,
            "created_at": sample.created_at,
            "endpoint": sample.endpoint,
            "embedding": sample.embedding,
            "attempts": [asdict(attempt) for attempt in sample.attempts],
        }
        for sample in samples
    }
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(SAMPLES).on_conflict_do_nothing(index_elements=["request_id"])
        connection.execute(insert, [rows[key] for key in sorted(rows)])


def load(
    ledger: Ledger, endpoint: str, since: datetime | None = None, limit: int = 100_000
) -> list[LabelledSample]:
    """The newest `limit` samples of an endpoint, oldest first, with the outcome that counts."""
    query = (
        select(*SAMPLES.c, OUTCOMES.c.success, OUTCOMES.c.human_minutes)
        .join_from(SAMPLES, OUTCOMES, counts_for(SAMPLES.c.request_id), isouter=True)
        .where(SAMPLES.c.endpoint == endpoint)
        .order_by(SAMPLES.c.created_at.desc(), SAMPLES.c.request_id.desc())
        .limit(limit)
    )
    if since is not None:
        query = query.where(SAMPLES.c.created_at >= since)
    with ledger.read() as connection:
        return [_labelled(row._asdict()) for row in connection.execute(query)][::-1]


def forget_before(ledger: Ledger, moment: datetime) -> int:
    """Forget samples older than `moment`; returns how many there were."""
    with ledger.write() as connection:
        old = delete(SAMPLES).where(SAMPLES.c.created_at < moment)
        return connection.execute(old).rowcount


def _labelled(row: dict[str, Any]) -> LabelledSample:
    attempts = [Attempt(**attempt) for attempt in row["attempts"]]
    minutes = row["human_minutes"] or 0.0
    return LabelledSample(**row | {"attempts": attempts, "human_minutes": minutes})
