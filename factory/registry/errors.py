"""The registry's error."""

from __future__ import annotations


class RegistryError(Exception):
    """Something the registry cannot or will not do; the message says what to do instead."""
