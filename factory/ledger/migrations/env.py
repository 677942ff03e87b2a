"""Alembic's entry: runs the migrations on the connection that `database.migrate` passes in."""

from __future__ import annotations

from alembic import context

from factory.ledger.schema import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
