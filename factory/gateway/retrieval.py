"""Searches in vector stores; what was found before is free.

    reply = await retrieval.search(authorization, "vs_...", read_body)
    {"object": "vector_store.search_results.page", "data": [{"score": 0.71, "content": [...]}]}

Results are kept by team, version of the store, encoder, filters of the guard and the search itself,
so any change of the store forgets them, in every gateway process. The same search by several at
once is made once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

from cachetools import TTLCache

from factory.config import Settings
from factory.gateway import cache
from factory.gateway.admission import Admission, expected_tokens
from factory.gateway.cache import Policy
from factory.gateway.call import Call
from factory.gateway.clock import Clock
from factory.gateway.embedding import Embedding
from factory.gateway.engine import Vectors
from factory.gateway.flights import Flights
from factory.gateway.guarding import Guarding
from factory.gateway.journey import Journey
from factory.gateway.replies import Reply
from factory.gateway.served import Served
from factory.gateway.settlement import Settlement
from factory.gateway.store_bodies import StoreSearch, parse_search
from factory.gateway.store_replies import found_object, problem, results
from factory.gateway.stores import Body, Stores, check_embedder
from factory.telemetry.traffic import Traffic
from factory.vectors import Found, Store, VectorsError, VectorStores

_MOST_RESULTS = 10
"""Chunks in an answer where the client does not say."""


@dataclass(frozen=True, slots=True)
class _Results:
    """What was found, whose embeddings found it, and the tokens of the question."""

    rows: list[dict[str, Any]]
    served: Served
    tokens: int


class Retrieval:
    """The searches of one gateway process."""

    def __init__(
        self,
        *,
        settings: Settings,
        vectors: VectorStores,
        stores: Stores,
        admission: Admission,
        guarding: Guarding,
        embedding: Embedding,
        settlement: Settlement,
        traffic: Traffic,
        clock: Clock,
    ) -> None:
        self._vectors = vectors
        self._stores = stores
        self._admission = admission
        self._guarding = guarding
        self._embedding = embedding
        self._settlement = settlement
        self._traffic = traffic
        self._clock = clock
        keeps, ttl_s = settings.cache.retrievals, settings.cache.ttl_s
        self._flights: Flights[bytes, _Results] = Flights()
        self._kept: TTLCache[bytes, _Results] = TTLCache(keeps, ttl_s, timer=clock.monotonic)

    async def search(
        self, authorization: str | None, store_id: str, body: Body, cache_control: str = ""
    ) -> Reply:
        """The chunks nearest to a question. Raises `ApiError`."""
        journey = await self._admission.begin(authorization, "search")
        async with self._settlement.of(journey, lambda: not journey.pays):
            asked = parse_search(await body())
            store = await self._stores.of(journey.key, store_id)
            near = asked.ranking_options
            request = StoreSearch(
                model=store.endpoint,
                input=asked.queries,
                store=store_id,
                most=asked.max_num_results or _MOST_RESULTS,
                filters=asked.filters,
                threshold=(near and near.score_threshold) or 0.0,
            )
            return await self.find(journey, request, cache_control)

    async def find(
        self,
        journey: Journey,
        request: StoreSearch,
        cache_control: str = "",
        approved: bool = False,
    ) -> Reply:
        """Search, and settle. Raises `ApiError`."""
        call = self._admission.permitted(journey, request, "embed", approved)
        store = await self._stores.of(journey.key, request.store)
        served = self._embedding.served(call.endpoint, call.served)
        policy = cache.policy(request, call.endpoint.tiers, cache_control)
        key = await self._key(journey.key.team, call, served)
        kept = self._kept.get(key) if policy.look else None
        if kept is not None:
            journey.cache = "hit"
        else:
            call = await self._guarding.look(journey, call)
            self._admission.count(journey, tokens=expected_tokens(call.request))
            kept = await self._shared(journey, call, store, policy, key)
        if not journey.pays:
            journey.found_before(kept.served, kept.tokens)
            await self._settlement.ok(journey)
        return Reply(results(call.request.texts, kept.rows), journey.headers())

    async def _shared(
        self, journey: Journey, call: Call[StoreSearch], store: Store, policy: Policy, key: bytes
    ) -> _Results:
        """What is found, by one search for all who ask the same at once; the first one pays."""
        owner = journey.key
        bounded = owner.limits.model_fields_set or owner.budget.model_fields_set
        alone = journey.request_id if not policy.keep else owner.key_id if bounded else ""
        with self._flights.join(
            key + alone.encode(), partial(self._compute, journey, call, store, policy, key)
        ) as boarding:
            journey.pays = boarding.leader
            if not boarding.leader:
                journey.cache = "shared"
            return await boarding.result()

    async def _compute(
        self, journey: Journey, call: Call[StoreSearch], store: Store, policy: Policy, key: bytes
    ) -> _Results:
        """Search, and settle the request that pays."""
        async with self._settlement.of(journey):
            served = self._embedding.served(call.endpoint, call.served)
            check_embedder(store, served)
            embedded = await self._embedding.vectors(journey, call, served)
            rows = [found_object(one) for one in await self._near(journey, call, embedded.vectors)]
            journey.cache = "miss" if policy.look and self._kept.maxsize else "off"
            journey.embedded(served, embedded.tokens, embedded.computed)
            found = _Results(rows, served, embedded.tokens)
            if policy.keep and self._kept.maxsize:
                self._kept[key] = found
            await self._settlement.ok(journey)
            return found

    async def drain(self) -> None:
        """Wait for the searches that departed clients left behind."""
        await self._flights.drain()

    async def _key(self, team: str, call: Call[StoreSearch], served: Served) -> bytes:
        """What the results of a search depend on."""
        try:
            version = await self._vectors.version(team, call.request.store)
        except VectorsError as error:
            raise problem(error) from error
        parts = (team, call.name, str(version), served.version, self._guarding.mark(call.name))
        mark = hashlib.blake2b("\0".join(parts).encode() + b"\0", digest_size=16)
        mark.update(call.request.canonical())
        return mark.digest()

    async def _near(
        self, journey: Journey, call: Call[StoreSearch], vectors: Vectors
    ) -> list[Found]:
        """The nearest chunks to any of the questions."""
        team, asked = journey.key.team, call.request
        begun = self._clock.monotonic()
        try:
            among = None
            if asked.filters is not None:
                files = await self._vectors.files(team, asked.store)
                among = [one.file_id for one in files if asked.filters.holds(one.attributes)]
            found = [
                one
                for vector in vectors
                for one in await self._vectors.search(team, asked.store, vector, asked.most, among)
                if one.score >= asked.threshold
            ]
        except VectorsError as error:
            raise problem(error) from error
        seconds = self._clock.monotonic() - begun
        self._traffic.searched(call.name, seconds)
        journey.engine_s += seconds
        found.sort(key=lambda one: (-one.score, one.file.file_id, one.seq))
        best = {(one.file.file_id, one.seq): one for one in reversed(found)}
        near = [one for one in found if best[one.file.file_id, one.seq] is one][: asked.most]
        journey.reasons.append(f"{len(near)} chunks of {asked.store} in {seconds * 1000:.1f} ms")
        return near
