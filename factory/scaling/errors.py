"""What can go wrong with what the user brought."""

from __future__ import annotations


class ScalingError(Exception):
    """A trace or a profile that cannot be used; the message says what to do."""
