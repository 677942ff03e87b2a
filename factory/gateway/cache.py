"""Tier 0: the exact cache. The same question to the same models of the same team, answered once.

    key = key_of(call, team, mark)
    entry = cache.get(key) or await cache.fetch(key, call)
    cache.put(key, entry, scope)

A request is cached unless it asks for a different answer each time (`temperature` above 0 without
a `seed`); streaming or not makes no difference. `Cache-Control: no-cache` fetches a new answer and
keeps it, `no-store` neither looks nor keeps. An answer that a failure degraded is never kept. A
model version is part of the key, so a promotion or a rollback invalidates what came before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cachetools import TTLCache

from factory.config import Cache as CacheSettings
from factory.gateway.answers import Answer
from factory.gateway.call import Asked, Call
from factory.gateway.clock import Clock
from factory.gateway.replies import Rendered, render
from factory.gateway.served import Served
from factory.ledger.answers import Answer as Kept
from factory.ledger.errors import LedgerError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept answer and who gave it."""

    rendered: Rendered
    answer: Answer
    served: Served
    confidence: float | None
    degraded: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether a request may look into the cache, and whether its answer may be kept."""

    look: bool
    keep: bool
    reason: str


def policy(request: Asked, tiers: tuple[int, ...], cache_control: str) -> Policy:
    """The decision for one request, from its fields, its endpoint's tiers and `Cache-Control`."""
    if 0 not in tiers:
        return Policy(False, False, "cache off: the endpoint has no tier 0")
    if not request.repeatable:
        return Policy(False, False, "cache off: temperature without a seed")
    if cache_control:
        wishes = {part.strip().lower() for part in cache_control.split(",")}
        if "no-store" in wishes:
            return Policy(False, False, "cache off: the client sent no-store")
        if "no-cache" in wishes:
            return Policy(False, True, "cache not asked: the client sent no-cache")
    return Policy(True, True, "")


class ExactCache:
    """Answers by request, bounded in number and in age: in memory, and in the database below.

    What another replica kept, or this one before it was restarted, is found in the database on the
    first miss in memory. Writing there is not waited for.
    """

    def __init__(
        self,
        settings: CacheSettings,
        clock: Clock,
        find: Callable[[str, datetime], Kept | None],
        keep: Callable[[Kept], None],
        keys: Callable[[datetime], set[str]],
        alone: bool,
    ) -> None:
        """`find` looks into the database, in a thread; `keep` has an answer written there.

        `alone` says that nobody else writes there: then only the keys found at the start can be in
        it and not in memory.
        """
        self.on = settings.max_entries > 0
        self._settings = settings
        self._clock = clock
        self._find = find
        self._keep = keep
        self._kept_before = self._known_keys(keys) if alone and self.on else None
        self._entries: TTLCache[str, Entry] = TTLCache(
            max(settings.max_entries, 1), settings.ttl_s, timer=clock.monotonic
        )

    def get(self, key: str) -> Entry | None:
        """The answer in memory, if there is one and it is not too old."""
        return self._entries.get(key)

    def _known_keys(self, keys: Callable[[datetime], set[str]]) -> set[str] | None:
        try:
            return keys(self._clock.now())
        except LedgerError as error:
            _log.warning("kept answers are looked up one by one: %s", error)
            return None

    async def fetch(self, key: str, call: Call) -> Entry | None:
        """The answer in the database; None also when the database does not answer."""
        if self._kept_before is not None and key not in self._kept_before:
            return None
        try:
            kept = await asyncio.to_thread(self._find, key, self._clock.now())
            entry = None if kept is None else _revived(kept.entry, call)
        except (LedgerError, KeyError, TypeError, ValueError) as error:
            _log.warning("the kept answer %s cannot be used: %s", key, error)
            return None
        if entry is not None:
            self._entries[key] = entry
        return entry

    def put(
        self,
        key: str,
        entry: Entry,
        scope: str,
        question: str | None = None,
        embedding: bytes | None = None,
    ) -> bool:
        """Keep an answer; the least recently used one makes room. False when it is too large."""
        if len(entry.rendered.whole) > self._settings.max_entry_bytes:
            return False
        self._entries[key] = entry
        now = self._clock.now()
        self._keep(
            Kept(
                key=key,
                scope=scope,
                created_at=now,
                expires_at=now + timedelta(seconds=self._settings.ttl_s),
                entry=_packed(entry),
                question=question,
                embedding=embedding,
            )
        )
        return True


def key_of(call: Call, team: str, mark: str) -> str:
    """Endpoint, team, the models behind the endpoint, its guard, and the request's own form."""
    return hashlib.blake2b(
        scope_of(call, team, mark).encode() + b"\0" + call.request.canonical(), digest_size=16
    ).hexdigest()


def scope_of(call: Call, team: str, mark: str) -> str:
    """Everything but the request that an answer depends on. `mark` changes with the guard."""
    models = [f"{tier}:{one.model}@{one.version}:{one.off}" for tier, one in call.served.items()]
    return "\0".join((call.name, team, mark, *models))


def _packed(entry: Entry) -> dict[str, Any]:
    return {
        "answer": entry.answer.as_dict(),
        "tier": entry.served.tier,
        "confidence": entry.confidence,
        "degraded": entry.degraded,
    }


def _revived(fields: dict[str, Any], call: Call) -> Entry | None:
    """The entry, said by the model that has its tier now: the key holds that it is the same."""
    served = call.served.get(fields["tier"])
    if served is None:
        return None
    answer = Answer.from_dict(fields["answer"])
    request = call.request
    rendered = render(answer, served.label, request.shows_logprobs, request.route)
    return Entry(rendered, answer, served, fields["confidence"], fields["degraded"])
