"""The semantic cache: finds the kept answer of a question that means the same in other words.

    cache = SemanticCache(embedder, settings.cache.semantic, thresholds.get, ttl_s=3600)
    cache.add("support/helpdesk", context_hash, "How do I reset my password?", key)
    cache.find("support/helpdesk", context_hash, "What's the way to reset my password?")
    # Hit(key=…, score=0.97, question="How do I reset my password?", reasons=(…))

Only the last user turn is compared by meaning. Everything else that shapes an answer (system
prompt, earlier turns, parameters, tools, response format, model versions) goes into
`context_hash`, which must be equal. A scope ("team/endpoint") without a calibrated threshold finds
nothing. Everything is synchronous and stays well under a millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from factory.config.cache import SemanticCache as Settings
from factory.gateway.semantic.index import Entry, Index
from factory.gateway.semantic.score import Embedder, PairModel

CANDIDATES = 6
"""Nearest questions that are compared word by word."""

LEAST_COSINE = 0.35
"""Farther questions are not compared."""

MAX_CHARACTERS = 2000
"""Longer questions are neither kept nor looked up: they rarely come again in other words."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A kept question that means the same."""

    key: bytes
    """Where its answer is."""
    score: float
    """How surely the two mean the same."""
    question: str
    """The kept question, for the audit log and for people who check."""
    reasons: tuple[str, ...]
    """Why it was taken."""


class SemanticCache:
    """Questions of all scopes of one gateway replica. For one thread, such as an event loop."""

    def __init__(
        self,
        embedder: Embedder,
        settings: Settings,
        threshold: Callable[[str], float | None],
        *,
        ttl_s: float = 3600.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`threshold(scope)` is the calibrated one, or None where the cache is off."""
        self._embedder = embedder
        self._model = PairModel(embedder)
        self._settings = settings
        self._threshold = threshold
        self._ttl = ttl_s
        self._monotonic = monotonic
        self._indexes: dict[str, Index] = {}

    def find(self, scope: str, context_hash: bytes, question: str) -> Hit | None:
        """The best kept question at or over the scope's threshold, or None."""
        threshold = self._threshold(scope)
        index = self._indexes.get(scope)
        if threshold is None or index is None or len(question) > MAX_CHARACTERS:
            return None
        vector = self._embedder.encode_one(question)
        near = index.candidates(context_hash, vector, CANDIDATES, LEAST_COSINE)
        if not near:
            return None
        reading = self._model.read(question)
        best: tuple[Entry, float] | None = None
        for entry, cosine in near:
            score = self._model.compare(reading, entry.reading, cosine).score
            if score >= threshold and (best is None or score > best[1]):
                best = (entry, score)
        if best is None:
            return None
        entry, score = best
        index.touch(context_hash, entry.key)
        return Hit(
            entry.key,
            score,
            entry.question,
            (
                f"semantic hit: score {score:.3f}, calibrated threshold {threshold:.3f}",
                "numbers, names, negation and direction agree",
            ),
        )

    def add(self, scope: str, context_hash: bytes, question: str, key: bytes) -> None:
        """Keep a question whose answer is kept under `key`; nothing where the cache is off."""
        if self._threshold(scope) is None or not question or len(question) > MAX_CHARACTERS:
            return
        index = self._indexes.get(scope)
        if index is None:
            index = self._indexes[scope] = Index(
                self._embedder.dimensions, self._settings.max_entries, self._ttl, self._monotonic
            )
        entry = Entry(question, self._model.read(question), key)
        index.add(context_hash, self._embedder.encode_one(question), entry)

    def remove(self, scope: str, context_hash: bytes, key: bytes) -> None:
        """Forget one question: its answer is gone or was a false hit."""
        if scope in self._indexes:
            self._indexes[scope].remove(context_hash, key)

    def forget(self, scope: str) -> None:
        """Forget all questions of a scope, as after a promotion or rollback."""
        self._indexes.pop(scope, None)

    def size(self, scope: str) -> int:
        """Questions kept for a scope."""
        return len(self._indexes[scope]) if scope in self._indexes else 0
