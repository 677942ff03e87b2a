"""What the ledger raises: one sentence that says what is wrong and what to do."""

from __future__ import annotations


class LedgerError(Exception):
    """A request to the ledger that cannot be carried out; nothing was written."""


class LedgerUnavailable(LedgerError):
    """The database itself does not answer (down, locked, disk full); the same call may work later.

    The outcome of a commit that was interrupted is unknown. Recording the same again is safe.
    """
