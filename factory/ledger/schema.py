"""The ledger's tables. What is in `APPEND_ONLY` can only grow: triggers made by the migrations
refuse to change or delete a row, in SQLite and in PostgreSQL.

A change here needs a new file in `migrations/versions` and a new `HEAD`; a test compares both.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

HEAD = "0006"
"""The migration that this code is written for."""

VERSION_TABLE = "factory_ledger_version"
"""Alembic's table; a name of its own, since MLflow may live in the same database."""

APPEND_ONLY = (
    "requests",
    "charges",
    "promotions",
    "outcomes",
    "audit",
    "calibrations",
    "node_hours",
    "job_charges",
    "zone_observations",
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC timestamp, also in SQLite, which knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The stored form; a naive time is refused by `ValueError`."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The aware form."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Where all tables are registered."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {
        str: Text(),
        float: Double(),
        datetime: UtcDateTime(),
        list[str]: JSON(),
        list[dict[str, Any]]: JSON(),
        dict[str, Any]: JSON(),
    }


class RequestRow(Base):
    """One request; see `records.RequestRecord`."""

    __tablename__ = "requests"
    __table_args__ = (Index(None, "created_at"),)

    request_id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    team: Mapped[str]
    endpoint: Mapped[str]
    key_id: Mapped[str | None]
    status: Mapped[str]
    http_status: Mapped[int]
    tier: Mapped[int | None]
    model: Mapped[str | None]
    model_version: Mapped[str | None]
    cache: Mapped[str]
    degraded: Mapped[bool]
    confidence: Mapped[float | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cost_nusd: Mapped[int] = mapped_column(BigInteger)
    top_tier_nusd: Mapped[int] = mapped_column(BigInteger)
    latency_ms: Mapped[float]
    overhead_ms: Mapped[float]
    reasons: Mapped[list[str]]
    error: Mapped[str | None]
    tags: Mapped[dict[str, Any]] = mapped_column(server_default="{}")


class ChargeRow(Base):
    """One part of a request's cost; see `records.ChargeRecord`."""

    __tablename__ = "charges"
    __table_args__ = (UniqueConstraint("request_id", "seq"),)

    charge_id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.request_id"))
    seq: Mapped[int]
    created_at: Mapped[datetime]
    team: Mapped[str]
    endpoint: Mapped[str]
    tier: Mapped[int | None]
    model: Mapped[str | None]
    kind: Mapped[str]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cost_nusd: Mapped[int] = mapped_column(BigInteger)
    latency_ms: Mapped[float]
    reason: Mapped[str]


class ApiKeyRow(Base):
    """A team's key; only the hash of its secret is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("hash"),)

    key_id: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str]
    prefix: Mapped[str]
    team: Mapped[str]
    endpoints: Mapped[list[str]]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    roles: Mapped[list[str]]
    budget: Mapped[dict[str, Any]]
    limits: Mapped[dict[str, Any]]


class PromotionRow(Base):
    """One decision about a champion; see `records.Promotion`."""

    __tablename__ = "promotions"
    __table_args__ = (Index(None, "name", "id"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    created_at: Mapped[datetime]
    name: Mapped[str]
    action: Mapped[str]
    version: Mapped[int | None]
    previous: Mapped[int | None]
    actor: Mapped[str]
    reasons: Mapped[list[str]]
    metrics: Mapped[dict[str, Any]]


class SpendRow(Base):
    """What one scope spent and holds in one calendar window; see `budgets`."""

    __tablename__ = "spend"

    scope: Mapped[str] = mapped_column(primary_key=True)
    window: Mapped[str] = mapped_column(primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(primary_key=True)
    spent_nusd: Mapped[int] = mapped_column(BigInteger)
    reserved_nusd: Mapped[int] = mapped_column(BigInteger)


class ReservationRow(Base):
    """Money held for a request in progress; see `budgets`."""

    __tablename__ = "reservations"
    __table_args__ = (Index(None, "holder"),)

    request_id: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    created_at: Mapped[datetime]
    team: Mapped[str]
    endpoint: Mapped[str]
    key_id: Mapped[str | None]
    amount_nusd: Mapped[int] = mapped_column(BigInteger)
    scopes: Mapped[list[str]]


class HolderRow(Base):
    """A gateway process that holds reservations, and when it was last alive."""

    __tablename__ = "holders"

    holder: Mapped[str] = mapped_column(primary_key=True)
    beat_at: Mapped[datetime]


class AlertRow(Base):
    """A fraction of a budget that was passed; raised once a window."""

    __tablename__ = "alerts"

    scope: Mapped[str] = mapped_column(primary_key=True)
    window: Mapped[str] = mapped_column(primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(primary_key=True)
    fraction: Mapped[float] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    spent_nusd: Mapped[int] = mapped_column(BigInteger)
    limit_nusd: Mapped[int] = mapped_column(BigInteger)


class OutcomeRow(Base):
    """Whether an answer did its job; see `records.Outcome`."""

    __tablename__ = "outcomes"
    __table_args__ = (Index(None, "request_id"),)

    outcome_id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.request_id"))
    created_at: Mapped[datetime]
    success: Mapped[bool]
    human_minutes: Mapped[float]
    reporter: Mapped[str]
    comment: Mapped[str]


class AuditRow(Base):
    """One decision, chained to the one before by its hash; see `audit`."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "subject"),)

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str]
    hash: Mapped[str]


class ReviewRow(Base):
    """A request or an answer that waits for a person; see `reviews`."""

    __tablename__ = "reviews"
    __table_args__ = (Index(None, "status", "created_at"),)

    review_id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    request_id: Mapped[str]
    team: Mapped[str]
    endpoint: Mapped[str]
    key_id: Mapped[str | None]
    stage: Mapped[str]
    reasons: Mapped[list[str]]
    request: Mapped[dict[str, Any]]
    answer: Mapped[dict[str, Any] | None]
    status: Mapped[str]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None]
    note: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]


class AnswerRow(Base):
    """An answer that tier 0 keeps; see `answers`."""

    __tablename__ = "answers"
    __table_args__ = (Index(None, "expires_at"), Index(None, "scope", "created_at"))

    key: Mapped[str] = mapped_column(primary_key=True)
    scope: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    size_bytes: Mapped[int]
    entry: Mapped[dict[str, Any]]
    question: Mapped[str | None]
    embedding: Mapped[bytes | None]


class SampleRow(Base):
    """What the router saw of a request, kept to learn from; see `samples`."""

    __tablename__ = "samples"
    __table_args__ = (Index(None, "endpoint", "created_at"),)

    request_id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    endpoint: Mapped[str]
    embedding: Mapped[bytes]
    attempts: Mapped[list[dict[str, Any]]]


class CalibrationRow(Base):
    """Thresholds found from labelled data; the newest of a kind and scope holds."""

    __tablename__ = "calibrations"
    __table_args__ = (Index(None, "kind", "scope", "id"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    created_at: Mapped[datetime]
    kind: Mapped[str]
    scope: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]


class NodeHoursRow(Base):
    """A machine from one moment to another, and who held it; see `nodes`."""

    __tablename__ = "node_hours"
    __table_args__ = (UniqueConstraint("machine", "starts_at"), Index(None, "ends_at"))

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    machine: Mapped[str]
    node_id: Mapped[str]
    pool: Mapped[str]
    zone: Mapped[str | None]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    nusd_per_hour: Mapped[int] = mapped_column(BigInteger)
    cost_nusd: Mapped[int] = mapped_column(BigInteger)
    holds: Mapped[list[dict[str, Any]]]


class JobRow(Base):
    """A job of the queue; see `factory.cluster.queue.store`."""

    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("order"), Index(None, "state"))

    job_id: Mapped[str] = mapped_column(primary_key=True)
    order: Mapped[int]
    created_at: Mapped[datetime]
    team: Mapped[str]
    module: Mapped[str]
    spec: Mapped[dict[str, Any]]
    state: Mapped[str]
    reason: Mapped[str]
    position: Mapped[int | None]
    attempt: Mapped[int]
    failures: Mapped[int]
    interruptions: Mapped[int]
    not_before: Mapped[datetime | None]
    eligible_at: Mapped[datetime | None]
    cluster: Mapped[str | None]
    pool: Mapped[str | None]
    asked: Mapped[str | None]
    estimate_nusd: Mapped[int | None] = mapped_column(BigInteger)
    cost_nusd: Mapped[int] = mapped_column(BigInteger)
    waited_s: Mapped[float]
    worked_s: Mapped[float] = mapped_column(server_default="0")
    zone: Mapped[str | None]
    started_at: Mapped[datetime | None]
    charged_until: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class JobChargeRow(Base):
    """What a job cost from one moment to another; counts in its team's budgets."""

    __tablename__ = "job_charges"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    team: Mapped[str]
    pool: Mapped[str]
    attempt: Mapped[int]
    since: Mapped[datetime]
    until: Mapped[datetime]
    cost_nusd: Mapped[int] = mapped_column(BigInteger)


class ZoneObservationRow(Base):
    """Whether a node of a zone could be had at one moment; see `zones`."""

    __tablename__ = "zone_observations"
    __table_args__ = (Index(None, "pool", "at"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime]
    pool: Mapped[str]
    zone: Mapped[str]
    up: Mapped[bool]
    source: Mapped[str]
    nusd_per_hour: Mapped[int | None] = mapped_column(BigInteger)


class LeaseRow(Base):
    """Who alone may do something, until when; `fence` grows with every new holder."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    fence: Mapped[int]
    expires_at: Mapped[datetime]


REQUESTS = Base.metadata.tables["requests"]
CHARGES = Base.metadata.tables["charges"]
API_KEYS = Base.metadata.tables["api_keys"]
PROMOTIONS = Base.metadata.tables["promotions"]
SPEND = Base.metadata.tables["spend"]
RESERVATIONS = Base.metadata.tables["reservations"]
HOLDERS = Base.metadata.tables["holders"]
ALERTS = Base.metadata.tables["alerts"]
OUTCOMES = Base.metadata.tables["outcomes"]
AUDIT = Base.metadata.tables["audit"]
REVIEWS = Base.metadata.tables["reviews"]
ANSWERS = Base.metadata.tables["answers"]
SAMPLES = Base.metadata.tables["samples"]
CALIBRATIONS = Base.metadata.tables["calibrations"]
NODE_HOURS = Base.metadata.tables["node_hours"]
JOBS = Base.metadata.tables["jobs"]
JOB_CHARGES = Base.metadata.tables["job_charges"]
ZONE_OBSERVATIONS = Base.metadata.tables["zone_observations"]
LEASES = Base.metadata.tables["leases"]


def within(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """The condition that a request was created from `since` up to, not including, `until`."""
    conditions = []
    if since is not None:
        conditions.append(REQUESTS.c.created_at >= since)
    if until is not None:
        conditions.append(REQUESTS.c.created_at < until)
    return conditions
