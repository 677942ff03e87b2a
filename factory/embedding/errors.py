"""What can go wrong with an embedder, as a sentence for the user."""

from __future__ import annotations


class EmbeddingError(Exception):
    """An embedder cannot be read or made; the message says what to do."""
