"""When spot zones had capacity, and what a job has done so far."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from factory.ledger.migrations.append_only import protect

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table; jobs queued before have done nothing that is known."""
    op.create_table(
        "zone_observations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("up", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("nusd_per_hour", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_zone_observations"),
    )
    op.create_index("ix_zone_observations_pool_at", "zone_observations", ["pool", "at"])
    protect("zone_observations", "id = NEW.id")
    op.add_column("jobs", sa.Column("worked_s", sa.Double(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("zone", sa.Text()))
