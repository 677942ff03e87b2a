"""Budgets, reservations, outcomes, reviews, the audit chain, kept answers, calibrations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from factory.ledger.migrations.append_only import protect

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)

APPEND_ONLY = {
    "outcomes": "outcome_id = NEW.outcome_id",
    "audit": "seq = NEW.seq",
    "calibrations": "id = NEW.id",
}


def upgrade() -> None:
    """Create everything; keys that exist may infer, as before."""
    for name, default in (("roles", '["inference"]'), ("budget", "{}"), ("limits", "{}")):
        op.add_column(
            "api_keys", sa.Column(name, sa.JSON(), nullable=False, server_default=default)
        )
    op.create_table(
        "spend",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("window", sa.Text(), nullable=False),
        sa.Column("starts_at", TIME, nullable=False),
        sa.Column("spent_nusd", sa.BigInteger(), nullable=False),
        sa.Column("reserved_nusd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "window", "starts_at", name="pk_spend"),
    )
    op.create_table(
        "reservations",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text()),
        sa.Column("amount_nusd", sa.BigInteger(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_reservations"),
    )
    op.create_index("ix_reservations_holder", "reservations", ["holder"])
    op.create_table(
        "holders",
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("beat_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("holder", name="pk_holders"),
    )
    op.create_table(
        "alerts",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("window", sa.Text(), nullable=False),
        sa.Column("starts_at", TIME, nullable=False),
        sa.Column("fraction", sa.Double(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("spent_nusd", sa.BigInteger(), nullable=False),
        sa.Column("limit_nusd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "window", "starts_at", "fraction", name="pk_alerts"),
    )
    op.create_table(
        "outcomes",
        sa.Column("outcome_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("success", sa.Boolean(), nullable=False),
        sa.Column("human_minutes", sa.Double(), nullable=False),
        sa.Column("reporter", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("outcome_id", name="pk_outcomes"),
        sa.ForeignKeyConstraint(
            ["request_id"], ["requests.request_id"], name="fk_outcomes_request_id"
        ),
    )
    op.create_index("ix_outcomes_request_id", "outcomes", ["request_id"])
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])
    op.create_table(
        "reviews",
        sa.Column("review_id", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text()),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("answer", sa.JSON()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("decided_at", TIME),
        sa.Column("decided_by", sa.Text()),
        sa.Column("note", sa.Text()),
        sa.Column("result", sa.JSON()),
        sa.PrimaryKeyConstraint("review_id", name="pk_reviews"),
    )
    op.create_index("ix_reviews_status_created_at", "reviews", ["status", "created_at"])
    op.create_table(
        "answers",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("entry", sa.JSON(), nullable=False),
        sa.Column("question", sa.Text()),
        sa.Column("embedding", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("key", name="pk_answers"),
    )
    op.create_index("ix_answers_expires_at", "answers", ["expires_at"])
    op.create_index("ix_answers_scope_created_at", "answers", ["scope", "created_at"])
    op.create_table(
        "samples",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.Column("attempts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_samples"),
    )
    op.create_index("ix_samples_endpoint_created_at", "samples", ["endpoint", "created_at"])
    op.create_table(
        "calibrations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_calibrations"),
    )
    op.create_index("ix_calibrations_kind_scope_id", "calibrations", ["kind", "scope", "id"])
    for table, same_row in APPEND_ONLY.items():
        protect(table, same_row)
