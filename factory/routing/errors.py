"""What routing raises: one sentence that says what is wrong and what to do."""

from __future__ import annotations


class RoutingError(Exception):
    """Labels, a stored router or a target that cannot be used."""
