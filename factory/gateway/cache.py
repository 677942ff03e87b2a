"""Tier 0: the exact cache. The same question to the same models of the same team, answered once.

A request is cached unless it asks for a different answer each time (`temperature` above 0 without
a `seed`); streaming or not makes no difference. `Cache-Control: no-cache` fetches a new answer and
keeps it, `no-store` neither looks nor keeps. An answer that a failure degraded is never kept. A
model version is part of the key, so a promotion or a rollback invalidates what came before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachetools import TTLCache

from factory.config import Cache as CacheSettings
from factory.gateway.answers import Answer
from factory.gateway.body import ChatRequest
from factory.gateway.replies import Rendered
from factory.gateway.served import Served


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


def policy(chat: ChatRequest, tiers: tuple[int, ...], cache_control: str) -> Policy:
    """The decision for one request, from its fields, its endpoint's tiers and `Cache-Control`."""
    if 0 not in tiers:
        return Policy(False, False, "cache off: the endpoint has no tier 0")
    if not chat.repeatable:
        return Policy(False, False, "cache off: temperature without a seed")
    if cache_control:
        wishes = {part.strip().lower() for part in cache_control.split(",")}
        if "no-store" in wishes:
            return Policy(False, False, "cache off: the client sent no-store")
        if "no-cache" in wishes:
            return Policy(False, True, "cache not asked: the client sent no-cache")
    return Policy(True, True, "")


class ExactCache:
    """Answers by request, bounded in number and in age, in this process's memory."""

    def __init__(self, settings: CacheSettings, monotonic: Callable[[], float]) -> None:
        self.on = settings.max_entries > 0
        self._entries: TTLCache[bytes, Entry] = TTLCache(
            max(settings.max_entries, 1), settings.ttl_s, timer=monotonic
        )

    def key(self, chat: ChatRequest, team: str, served: Mapping[int, Served]) -> bytes:
        """Endpoint, team, the models behind the endpoint, and the request's canonical form."""
        models = [f"{tier}:{one.model}@{one.version}:{one.off}" for tier, one in served.items()]
        scope = "\0".join((chat.model, team, *models)).encode()
        return hashlib.blake2b(scope + b"\0" + chat.canonical(), digest_size=16).digest()

    def get(self, key: bytes) -> Entry | None:
        """The kept answer, if there is one and it is not too old."""
        return self._entries.get(key) if self.on else None

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an answer; the least recently used one makes room."""
        if self.on:
            self._entries[key] = entry
