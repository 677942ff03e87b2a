"""The persistent half of tier 0's caches: answers that survive a restart.

    with ledger.write() as connection:
        put_many(connection, [Answer(key="9f86…", scope="helpdesk/3", created_at=now,
                                     expires_at=now + ttl, entry={"reply": …})])
    get(ledger, "9f86…", now)
    load_questions(ledger, "helpdesk/3", now, limit=20_000)   # for the semantic cache

Entries are JSON, never code. Nothing here is money or evidence: an entry may be replaced or
forgotten at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from factory.ledger.errors import LedgerError
from factory.ledger.schema import ANSWERS
from factory.ledger.store import Ledger
from factory.ledger.text import PROSE_LENGTH, check_name, stored

MAX_ENTRY_BYTES = 200_000
MAX_EMBEDDING_BYTES = 16_384
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that tier 0 keeps. Raises `LedgerError` for values that make no sense."""

    key: str
    """Hex text of 16 to 128 digits: a hash of all that the answer depends on."""
    scope: str
    """What forgets together: a tenant, endpoint and its versions."""
    created_at: datetime
    expires_at: datetime
    entry: dict[str, Any]
    """The reply as plain JSON."""
    question: str | None = None
    """What was asked, for the semantic cache; its first 4,000 characters."""
    embedding: bytes | None = None
    """Of the question: a little-endian float32 array."""

    def __post_init__(self) -> None:
        if not 16 <= len(self.key) <= 128 or not _HEX.issuperset(self.key):
            raise LedgerError(f"an answer's key must be 16 to 128 hex digits, not {self.key!r:.50}")
        check_name("an answer's scope", self.scope)
        if self.created_at.tzinfo is None or self.expires_at.tzinfo is None:
            raise LedgerError("an answer's times must have a time zone")
        if (self.embedding is not None) and self.question is None:
            raise LedgerError("an answer with an embedding needs its question")
        if self.embedding is not None and (
            not 0 < len(self.embedding) <= MAX_EMBEDDING_BYTES or len(self.embedding) % 4
        ):
            raise LedgerError(
                f"an answer's embedding must be 1 to {MAX_EMBEDDING_BYTES // 4} float32, "
                f"not {len(self.embedding)} bytes"
            )
        if self.question is not None:
            object.__setattr__(self, "question", stored(self.question, PROSE_LENGTH))


@dataclass(frozen=True, slots=True)
class Question:
    """What the semantic cache needs to know of an answer."""

    key: str
    question: str
    embedding: bytes
    """A little-endian float32 array."""
    expires_at: datetime


def put_many(
    connection: Connection, answers: Iterable[Answer], max_entry_bytes: int = MAX_ENTRY_BYTES
) -> int:
    """Keep answers in the caller's write transaction; returns how many.

    One with a key that is there replaces it; one whose entry is larger is left out. Raises
    `LedgerError` for an entry that is not plain JSON.
    """
    rows: dict[str, dict[str, Any]] = {}
    for answer in answers:
        size = _size(answer)
        if size > max_entry_bytes:
            continue
        rows[answer.key] = {
            "key": answer.key,
            "scope": answer.scope,
            "created_at": answer.created_at,
            "expires_at": answer.expires_at,
            "size_bytes": size,
            "entry": answer.entry,
            "question": answer.question,
            "embedding": answer.embedding,
        }
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(ANSWERS)
        names = [column.name for column in ANSWERS.c if column.name != "key"]
        new = {name: insert.excluded[name] for name in names}
        # In one order everywhere, so that two writers never wait for each other in a ring.
        connection.execute(
            insert.on_conflict_do_update(index_elements=["key"], set_=new),
            [rows[key] for key in sorted(rows)],
        )
    return len(rows)


def get(ledger: Ledger, key: str, now: datetime) -> Answer | None:
    """The answer of that key, unless it has expired by `now`."""
    columns = [column for column in ANSWERS.c if column.name != "size_bytes"]
    query = select(*columns).where(ANSWERS.c.key == key, ANSWERS.c.expires_at > now)
    with ledger.read() as connection:
        row = connection.execute(query).first()
    return None if row is None else Answer(**row._asdict())


def keys(ledger: Ledger, now: datetime) -> set[str]:
    """The keys of all answers that have not expired by `now`."""
    with ledger.read() as connection:
        return set(connection.scalars(select(ANSWERS.c.key).where(ANSWERS.c.expires_at > now)))


def load_questions(ledger: Ledger, scope: str, now: datetime, limit: int) -> list[Question]:
    """The newest `limit` questions of a scope that have an embedding, newest first."""
    query = (
        select(ANSWERS.c.key, ANSWERS.c.question, ANSWERS.c.embedding, ANSWERS.c.expires_at)
        .where(
            ANSWERS.c.scope == scope,
            ANSWERS.c.expires_at > now,
            ANSWERS.c.embedding.is_not(None),
            ANSWERS.c.question.is_not(None),
        )
        .order_by(ANSWERS.c.created_at.desc(), ANSWERS.c.key)
        .limit(limit)
    )
    with ledger.read() as connection:
        return [Question(*row) for row in connection.execute(query)]


def trim(ledger: Ledger, now: datetime, max_entries: int) -> int:
    """Forget what has expired by `now`, then the oldest beyond `max_entries`; returns how many."""
    expired = select(ANSWERS.c.key).where(ANSWERS.c.expires_at <= now)
    newest = (
        select(ANSWERS.c.created_at, ANSWERS.c.key)
        .order_by(ANSWERS.c.created_at.desc(), ANSWERS.c.key.desc())
        .offset(max_entries)
        .limit(1)
    )
    with ledger.write() as connection:
        gone = _delete(connection, expired)
        if edge := connection.execute(newest).first():
            older = (ANSWERS.c.created_at < edge.created_at) | (
                (ANSWERS.c.created_at == edge.created_at) & (ANSWERS.c.key <= edge.key)
            )
            gone += _delete(connection, select(ANSWERS.c.key).where(older))
    return gone


def _delete(connection: Connection, keys: Any) -> int:
    # What another process is just replacing or forgetting is left to it.
    mine = keys.with_for_update(skip_locked=True)
    return connection.execute(delete(ANSWERS).where(ANSWERS.c.key.in_(mine))).rowcount


def _size(answer: Answer) -> int:
    try:
        text = json.dumps(answer.entry, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(f"an answer must be plain JSON without NaN: {error}") from error
    return len(text) + len(answer.question or "") + len(answer.embedding or b"")
