"""Node-hours by machine."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from factory.ledger.migrations.append_only import protect

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """One append-only table; no moment of a machine can begin twice."""
    op.create_table(
        "node_hours",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text()),
        sa.Column("starts_at", TIME, nullable=False),
        sa.Column("ends_at", TIME, nullable=False),
        sa.Column("nusd_per_hour", sa.BigInteger(), nullable=False),
        sa.Column("cost_nusd", sa.BigInteger(), nullable=False),
        sa.Column("holds", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_node_hours"),
        sa.UniqueConstraint("machine", "starts_at", name="uq_node_hours_machine_starts_at"),
    )
    op.create_index("ix_node_hours_ends_at", "node_hours", ["ends_at"])
    protect("node_hours", "id = NEW.id OR (machine = NEW.machine AND starts_at = NEW.starts_at)")
