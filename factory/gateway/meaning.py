"""What a question means: compared with earlier ones for tier 0, and judged by a learned router.

    meaning = Meaning(settings, ledger, embedder)
    call = meaning.embedded(call)
    found = await meaning.find(team, call, mark)      # a Hit, or None
    meaning.add(team, call, mark, key)

Of a conversation only the last question is compared; everything else that shapes an answer must be
equal, by hash. Questions kept before a restart are read from the database when their context first
comes again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import replace
from functools import partial

from cachetools import LRUCache

from factory.config import Settings
from factory.embedding.static import StaticEmbedder
from factory.gateway.cache import scope_of
from factory.gateway.call import Call
from factory.gateway.clock import Clock
from factory.gateway.semantic import thresholds as calibrated
from factory.gateway.semantic.cache import Hit, SemanticCache
from factory.gateway.semantic.thresholds import Thresholds
from factory.ledger.answers import load_questions
from factory.ledger.errors import LedgerError
from factory.ledger.store import Ledger

_log = logging.getLogger(__name__)

FRESH_S = 30.0
"""Seconds for which a threshold is believed: a calibration takes effect without a restart."""

_CONTEXTS = 10_000
"""Contexts of which is remembered that their questions are in memory."""


class Meaning:
    """The comparisons of one gateway process."""

    def __init__(
        self, settings: Settings, ledger: Ledger, embedder: StaticEmbedder, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._embedder = embedder
        self._clock = clock
        self._limit = settings.cache.semantic.max_entries
        self._scopes = [
            calibrated.scope_of(endpoint.team, name)
            for name, endpoint in settings.endpoints.items()
            if endpoint.semantic_cache
        ]
        self._thresholds = Thresholds(embedder.hash)
        self._asked_at = float("-inf")
        self._warm: LRUCache[bytes, None] = LRUCache(_CONTEXTS)
        self._cache = SemanticCache(
            embedder,
            settings.cache.semantic,
            self._thresholds,
            ttl_s=settings.cache.ttl_s,
            monotonic=clock.monotonic,
        )

    def embedded(self, call: Call) -> Call:
        """The call with the embedding of its question, float32, where it has one."""
        question = call.request.last_question
        if not question:
            return call
        return replace(call, embedding=self._embedder.encode_one(question).tobytes())

    async def find(self, team: str, call: Call, mark: str) -> Hit | None:
        """The kept question that means the same, where the team's cache is calibrated."""
        question = call.request.last_question
        if not call.endpoint.semantic_cache or not question:
            return None
        await self._refresh()
        scope, context = calibrated.scope_of(team, call.name), self._context(team, call, mark)
        if self._thresholds(scope) is None:
            return None
        if context not in self._warm:
            self._warm[context] = None
            await self._read(scope, context)
        return self._cache.find(scope, context, question)

    def add(self, team: str, call: Call, mark: str, key: str) -> str:
        """Keep the question of an answer kept under `key`; returns the scope for the database,
        which is empty where questions are not compared."""
        question = call.request.last_question
        if not call.endpoint.semantic_cache or not question:
            return ""
        scope, context = calibrated.scope_of(team, call.name), self._context(team, call, mark)
        self._cache.add(scope, context, question, key.encode())
        return _stored(scope, context)

    def _context(self, team: str, call: Call, mark: str) -> bytes:
        around = scope_of(call, team, mark).encode() + b"\0" + call.request.context_hash()
        return hashlib.blake2b(around, digest_size=16).digest()

    async def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._asked_at < FRESH_S:
            return
        self._asked_at = now
        try:
            await asyncio.to_thread(self._thresholds.refresh, self._ledger, self._scopes)
        except LedgerError as error:
            _log.warning("the thresholds of the semantic cache are not read anew: %s", error)

    async def _read(self, scope: str, context: bytes) -> None:
        load = partial(load_questions, self._ledger, _stored(scope, context))
        try:
            kept = await asyncio.to_thread(load, self._clock.now(), self._limit)
        except LedgerError as error:
            _log.warning("kept questions are not read: %s", error)
            return
        for one in reversed(kept):
            self._cache.add(scope, context, one.question, one.key.encode())


def _stored(scope: str, context: bytes) -> str:
    return f"{scope}/{context.hex()}"
