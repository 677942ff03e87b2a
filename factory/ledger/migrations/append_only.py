"""Triggers that let a table grow and nothing else, in SQLite and in PostgreSQL."""

from __future__ import annotations

from alembic import op


def protect(table: str, same_row: str) -> None:
    """Refuse every change of `table` but a new row.

    `same_row` is SQL that holds for a row which an INSERT OR REPLACE of `NEW` would remove: in
    SQLite no delete trigger fires for it.
    """
    if op.get_bind().dialect.name == "sqlite":
        _protect_sqlite(table, same_row)
    else:
        _protect_postgresql(table)


def _protect_sqlite(table: str, same_row: str) -> None:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
    for event in ("UPDATE", "DELETE"):
        name = f"{table}_no_{event.lower()}"
        op.execute(f"CREATE TRIGGER {name} BEFORE {event} ON {table} {refuse}")
    op.execute(
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same_row}) {refuse}"
    )


def _protect_postgresql(table: str) -> None:
    # PostgreSQL has no REPLACE; its ON CONFLICT DO UPDATE fires the update trigger.
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )
