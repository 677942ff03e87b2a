"""What goes wrong with vector stores."""

from __future__ import annotations


class VectorsError(Exception):
    """The stores cannot be read or written; the message says why."""


class UnknownStore(VectorsError):
    """The team has no such store."""
