"""What a client calls its request by: `metadata` of the API, kept as `tags`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column; earlier requests have no tags."""
    op.add_column("requests", sa.Column("tags", sa.JSON(), nullable=False, server_default="{}"))
