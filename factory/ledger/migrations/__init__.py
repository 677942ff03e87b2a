"""Alembic migrations of the ledger, run by `open_ledger`; nobody has to type a command.

A new one is `versions/NNNN_what_changes.py` whose `down_revision` is the former head; then set
`schema.HEAD` to it. Everything in it must work inside one transaction on SQLite and PostgreSQL.
"""
