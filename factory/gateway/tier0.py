"""Tier 0 in a request's way: the exact cache, then questions that mean the same.

call = tier0.keyed(journey, call, policy)
entry = await tier0.exact(journey, call, policy)
call, entry = await tier0.semantic(journey, call, policy)
tier0.keep(journey, call, entry)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from factory.config import Settings
from factory.gateway.cache import Entry, ExactCache, Policy, key_of
from factory.gateway.call import Call
from factory.gateway.clock import Clock
from factory.gateway.journey import Journey
from factory.gateway.keeper import Keeper
from factory.gateway.meaning import Meaning
from factory.ledger import answers
from factory.ledger.store import Ledger


class Tier0:
    """The caches of one gateway process."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        clock: Clock,
        keeper: Keeper,
        mark: Callable[[str], str],
        meaning: Meaning | None,
    ) -> None:
        """`mark` changes with an endpoint's filters, so that they are never gone around."""
        self._exact = ExactCache(
            settings.cache,
            clock,
            partial(answers.get, ledger),
            keeper.answer,
            partial(answers.keys, ledger),
            alone=settings.gateway.replicas == 1,
        )
        self._mark = mark
        self._meaning = meaning

    def keyed(self, journey: Journey, call: Call, policy: Policy) -> Call:
        """The call with the key under which its answer is kept and shared, if it is."""
        if policy.reason:
            journey.reasons.append(policy.reason)
        if not self._exact.on or not policy.keep:
            return call
        journey.cache = "miss"
        return replace(call, key=key_of(call, journey.key.team, self._mark(call.name)))

    async def exact(self, journey: Journey, call: Call, policy: Policy) -> Entry | None:
        """The kept answer to this very request."""
        if not call.key or not policy.look:
            return None
        entry = self._exact.get(call.key) or await self._exact.fetch(call.key, call)
        if entry is not None:
            journey.cache = "hit"
        return entry

    async def semantic(
        self, journey: Journey, call: Call, policy: Policy
    ) -> tuple[Call, Entry | None]:
        """The kept answer to a question that means the same, and the call with its embedding."""
        if self._meaning is None:
            return call, None
        call = self._meaning.embedded(call)
        if not call.key or not policy.look:
            return call, None
        found = await self._meaning.find(journey.key.team, call, self._mark(call.name))
        if found is None:
            return call, None
        key = found.key.decode()
        entry = self._exact.get(key) or await self._exact.fetch(key, call)
        if entry is not None:
            journey.cache = "semantic"
            journey.reasons += found.reasons
        return call, entry

    def keep(self, journey: Journey, call: Call, entry: Entry) -> None:
        """Keep a finished answer, and its question where questions are compared."""
        if not call.key:
            return
        team, scope = journey.key.team, ""
        if self._meaning is not None:
            scope = self._meaning.add(team, call, self._mark(call.name), call.key)
        self._exact.put(
            call.key,
            entry,
            scope or f"{team}/{call.name}",
            call.request.last_question if scope else None,
            call.embedding if scope else None,
        )
