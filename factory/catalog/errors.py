"""The one error of the catalog: a sentence for the person who asked."""

from __future__ import annotations


class CatalogError(Exception):
    """A model or object that cannot be had; the message says what, where, and what to do."""
