"""Text as every database can keep it.

    stored("a\0b", NAME_LENGTH)   # "a\\x00b"

PostgreSQL keeps neither NUL nor lone surrogates, so these are escaped, and what is too long is
cut: what a client sends never makes a row that cannot be written.
"""

from __future__ import annotations

from factory.ledger.errors import LedgerError

NAME_LENGTH = 200
"""Characters of a name that are kept."""
PROSE_LENGTH = 4_000
"""Characters of prose that are kept."""


def stored(value: str, length: int) -> str:
    """`value`, escaped where a database could not keep it, and cut to `length` characters."""
    if "\0" in value or not value.isascii():
        value = value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
    return value if len(value) <= length else value[: length - 1] + "…"


def check_name(name: str, value: object) -> None:
    """Raise `LedgerError` unless the field `name` is text that is kept exactly as it is."""
    if not isinstance(value, str) or not value or stored(value, NAME_LENGTH) != value:
        raise LedgerError(
            f"{name} must be 1 to {NAME_LENGTH} storable characters, not {str(value)[:50]!r}"
        )


def printable(value: str) -> str:
    """`value` for a terminal: what could move its cursor or colour it is escaped."""
    if value.isprintable():
        return value
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value)
