"""`Gateway`: the whole way of a request, without HTTP and without Ray.

    gateway = Gateway(settings, ledger, LedgerWriter(ledger), serving)
    reply = await gateway.generate("chat", authorization="Bearer sk-factory-...", body=read_body)

`serving` maps endpoint to tier to `Served`; it is read anew for each request, so a promotion takes
effect by replacing an entry. Every request with a valid key is settled in the ledger, refused ones
too, before the last byte of its answer is handed out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

from cachetools import LRUCache

from factory.catalog.objects import ObjectStore
from factory.config import Settings
from factory.gateway import cache, readiness
from factory.gateway.admission import Admission, expected_tokens, new_id
from factory.gateway.awakening import Awakening
from factory.gateway.body import parse
from factory.gateway.breakers import Breakers
from factory.gateway.call import Asked, Call, Request
from factory.gateway.clock import Clock
from factory.gateway.computation import Computation
from factory.gateway.deepening import Deepening
from factory.gateway.delivery import Delivery, finished
from factory.gateway.embedding import Embedding
from factory.gateway.embedding_body import EmbeddingRequest, parse_embeddings
from factory.gateway.engine import Route
from factory.gateway.errors import ApiError
from factory.gateway.experience import Experience
from factory.gateway.guarding import Guarding
from factory.gateway.journey import Journey, Recorder
from factory.gateway.keeper import Keeper
from factory.gateway.learning import Learning
from factory.gateway.meaning import Meaning
from factory.gateway.metrics import Engines, Metrics
from factory.gateway.outcomes import Outcomes
from factory.gateway.patience import Patience
from factory.gateway.purse import Bank, Purses
from factory.gateway.replies import (
    Opening,
    Reply,
    render,
)
from factory.gateway.retrieval import Retrieval
from factory.gateway.reviews import ASYNC, Reviews
from factory.gateway.rules import LABEL, Rules
from factory.gateway.served import Pinned, Served, Serving
from factory.gateway.settlement import Settlement
from factory.gateway.store_bodies import StoreFile, StoreMake, StoreSearch
from factory.gateway.stores import Stores
from factory.gateway.tier0 import Tier0
from factory.gateway.turns import Turns
from factory.gateway.verdicts import Verdicts, lowest_asleep
from factory.ledger.budgets import configured
from factory.ledger.errors import LedgerError
from factory.ledger.keys import ApiKey
from factory.ledger.nodes import usage_of
from factory.ledger.report import explain
from factory.ledger.store import Entry, Ledger
from factory.ledger.till import LATEST_S
from factory.telemetry.traffic import Traffic
from factory.vectors import VectorStores

_LOOKS = 6
"""How often a request that another replica answered is looked for."""

TEND_S = 60.0
"""Seconds between two looks for reviews that nobody decided."""

_log = logging.getLogger(__name__)


class Books(Bank, Recorder, Protocol):
    """Where money is held and requests are settled: a `LedgerWriter`, or a `Till` before one."""

    async def flush(self) -> None:
        """Return when everything recorded so far can be read. Raises `LedgerError`."""
        ...


class Gateway:
    """Answers requests for the endpoints of one configuration."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        books: Books,
        serving: Serving,
        *,
        pinned: Pinned | None = None,
        meaning: Meaning | None = None,
        patience: Patience | None = None,
        clock: Clock | None = None,
        ids: Callable[[Route], str] = new_id,
        jitter: Callable[[], float] = random.random,
        engines: Engines | None = None,
    ) -> None:
        """Without `meaning` nothing is compared by meaning, and no learned router is asked.

        `engines` is asked for the engines' own figures when somebody scrapes the metrics.
        """
        self.settings = settings
        self.serving = serving
        self.pinned = pinned or {}
        self._ledger = ledger
        self._books = books
        self._clock = clock = clock or Clock()
        self._admission = Admission(settings, ledger, serving, self.pinned, clock, ids)
        self._rules = {name: Rules(one.rules) for name, one in settings.endpoints.items()}
        self._keeper = Keeper(ledger, settings.cache.max_entries, clock.now)
        # Processes that share a port are told apart; a single one has the same series for ever.
        self._traffic = Traffic(str(os.getpid()) if settings.gateway.replicas > 1 else "0")
        self._settlement = Settlement(books, self._traffic)
        self.reviews = Reviews(ledger, clock)
        self.outcomes = Outcomes(ledger, clock, self._settled)
        self._guarding = Guarding(settings, self.reviews)
        self._tier0 = Tier0(settings, ledger, clock, self._keeper, self._guarding.mark, meaning)
        self._learning = Learning(settings, ledger, ObjectStore(settings.objects), clock)
        purses = Purses(bank=books, review=self.reviews.hold, budgets=configured(settings))
        breakers = Breakers(settings.routing.breaker, clock.monotonic)
        patience = patience or Patience()
        experience = Experience()
        turns = Turns(
            settings.gateway.max_parallel_requests,
            settings.gateway.max_queue_s,
            beside_production=settings.gateway.beside_production,
            monotonic=clock.monotonic,
        )
        awakening = Awakening(clock.monotonic)
        self._metrics = Metrics(
            settings, ledger, clock, turns, awakening, self._rungs, self._traffic, engines
        )
        deepening = Deepening(
            serving=serving,
            experience=experience,
            breakers=breakers,
            purses=purses,
            awakening=awakening,
        )
        self._computation = Computation(
            settings=settings,
            settlement=self._settlement,
            turns=turns,
            awakening=awakening,
            breakers=breakers,
            experience=experience,
            patience=patience,
            jitter=jitter,
            patterns=tuple(re.compile(one) for one in settings.routing.hard_patterns),
            purses=purses,
            screening=self._guarding.screening,
            keep=self._tier0.keep,
            learned=self._learning.of,
            deepen=deepening.look,
            sample=self._sample,
        )
        self._delivery = Delivery(
            run=self._computation.run, settlement=self._settlement, traffic=self._traffic
        )
        self._embedding = Embedding(
            settlement=self._settlement,
            purses=purses,
            breakers=breakers,
            patience=patience,
            awakening=awakening,
            known=LRUCache(settings.cache.embeddings),
        )
        self._verdicts = Verdicts(
            self.reviews,
            ledger,
            self._admission,
            self._settlement,
            awakening,
            self._served,
            self._answer,
        )
        vectors = VectorStores(settings.vectors_url)
        self.stores = Stores(
            settings=settings,
            ledger=ledger,
            vectors=vectors,
            serving=serving,
            admission=self._admission,
            guarding=self._guarding,
            embedding=self._embedding,
            settlement=self._settlement,
            clock=clock,
        )
        self.retrieval = Retrieval(
            settings=settings,
            vectors=vectors,
            stores=self.stores,
            admission=self._admission,
            guarding=self._guarding,
            embedding=self._embedding,
            settlement=self._settlement,
            traffic=self._traffic,
            clock=clock,
        )

    async def generate(
        self,
        authorization: str | None,
        body: Callable[[], Awaitable[bytes]],
        parse: Callable[[bytes], Request] = parse,
        cache_control: str = "",
        route: Route = "chat",
        prefer: str = "",
    ) -> Reply | Opening:
        """Answer a chat or a completion: at once, or for a stream that is not kept by an `Opening`.

        Raises `ApiError` for everything that ends without an answer; 202 with an address to ask at
        when the client may `prefer` that to waiting for a model that is asleep.
        """
        journey = await self._admission.begin(authorization, route)
        async with self._settlement.of(journey, lambda: not journey.pays):
            found = await self._arrive(journey, parse(await body()), cache_control)
            if isinstance(found, Reply):
                return found
            if ASYNC in prefer and (sleeping := lowest_asleep(found.served)):
                self._computation.awakening.wake(sleeping)
                raise await self.reviews.later(journey, found, f"{sleeping.label} is asleep")
            if not found.request.stream:
                return await self._delivery.whole(journey, found)
        return lambda: self._delivery.stream(journey, found)

    async def embed(self, authorization: str | None, body: Callable[[], Awaitable[bytes]]) -> Reply:
        """Answer an embeddings request. Raises `ApiError`."""
        journey = await self._admission.begin(authorization, "embeddings")
        async with self._settlement.of(journey):
            asked = parse_embeddings(await body())
            return await self._embed(journey, asked)

    async def _embed(
        self, journey: Journey, asked: EmbeddingRequest, approved: bool = False
    ) -> Reply:
        call = self._admission.permitted(journey, asked, "embed", approved)
        call = await self._guarding.look(journey, call)
        self._admission.count(journey, tokens=expected_tokens(call.request))
        reply = await self._embedding.run(journey, call)
        return Reply(reply, journey.headers())

    async def _answer(self, journey: Journey, request: Asked, approved: bool) -> Reply:
        """Answer a request that was held. Raises `ApiError`."""
        match request:
            case StoreMake():
                return await self.stores.make(journey, request, approved)
            case StoreFile():
                return await self.stores.put(journey, request, approved)
            case StoreSearch():
                return await self.retrieval.find(journey, request, "no-store", approved)
            case EmbeddingRequest():
                return await self._embed(journey, request, approved)
        found = await self._arrive(journey, request, "no-store", approved)
        return found if isinstance(found, Reply) else await self._delivery.whole(journey, found)

    async def review(self, authorization: str | None, review_id: str) -> Reply:
        """A review, for those whom it concerns. What a person let pass is answered now.

        Raises `ApiError` 401, 404.
        """
        return await self._verdicts.poll(authorization, review_id)

    def _served(self, model: str, endpoint: str) -> Mapping[int, Served]:
        """Who would answer a request for `model`; empty when its endpoint is gone."""
        pinned = self.pinned.get(model)
        return {pinned.tier: pinned} if pinned else self.serving.get(endpoint, {})

    async def _arrive(
        self, journey: Journey, request: Request, cache_control: str, approved: bool = False
    ) -> Reply | Call:
        """What tier 0 answers, or the call that models must answer."""
        call = self._admission.permitted(journey, request, "generate", approved)
        if (ruled := await self._ruled(journey, call)) is not None:
            return ruled
        policy = cache.policy(request, call.endpoint.tiers, cache_control)
        call = self._tier0.keyed(journey, call, policy)
        entry = await self._tier0.exact(journey, call, policy)
        if entry is None:
            call = await self._guarding.look(journey, call)
            call, entry = await self._tier0.semantic(journey, call, policy)
        if entry is not None:
            return await self._delivery.hand_over(journey, call, entry)
        self._admission.count(journey, tokens=expected_tokens(request))
        return call

    async def _ruled(self, journey: Journey, call: Call) -> Reply | None:
        """The answer of a rule, where the endpoint has one for this question."""
        found = self._rules[call.name].answer(call.request) if 0 in call.endpoint.tiers else None
        if found is None:
            return None
        answer, why = found
        journey.ruled(answer.prompt_tokens, answer.completion_tokens, why)
        await self._settlement.ok(journey)
        rendered = render(answer, LABEL, call.request.shows_logprobs, call.request.route)
        return finished(journey, call.request, rendered)

    def _sample(self, journey: Journey, call: Call) -> None:
        if sample := self._learning.sample(journey, call):
            self._keeper.sample(sample)

    async def key(self, authorization: str | None) -> ApiKey:
        """Who is asking. Raises `ApiError` 401."""
        return await self._admission.key(authorization)

    async def explain(self, authorization: str | None, request_id: str) -> dict[str, Any]:
        """A request of the caller's own team and its charges. Raises `ApiError` 401, 404."""
        key = await self._admission.key(authorization)
        found = await self._settled(request_id)
        if found is None or found[0].team != key.team:
            raise ApiError(
                404, "request_not_found", f"your team has no request '{request_id[:80]}'"
            )
        usage = await asyncio.to_thread(usage_of, self._ledger, found[1])
        return explain(*found, usage=usage).as_dict()

    async def _settled(self, request_id: str) -> Entry | None:
        """A request that was answered, by whichever replica."""
        await self._books.flush()
        found = await asyncio.to_thread(self._ledger.request, request_id)
        looks = _LOOKS if self.settings.gateway.replicas > 1 else 0
        while found is None and looks:
            # Another replica may have it, and writes it within `LATEST_S` and a transaction.
            await asyncio.sleep(1.5 * LATEST_S / _LOOKS)
            found = await asyncio.to_thread(self._ledger.request, request_id)
            looks -= 1
        return found

    async def ready(self) -> readiness.Readiness:
        """Whether the ledger and the models answer."""
        return await readiness.check(partial(self._ledger.request, "readiness"), self.serving)

    async def metrics(self, authorization: str | None) -> bytes:
        """Everything Prometheus scrapes. Raises `ApiError` 401, 403 beyond loopback."""
        if not self._metrics.open:
            self._metrics.permit(await self._admission.key(authorization))
        return await self._metrics.scrape()

    def _rungs(self) -> list[Served]:
        return [one for rungs in self.serving.values() for one in rungs.values()]

    async def tend(self, every_s: float = TEND_S) -> None:
        """Now and then give up what waits for a person in vain; runs until it is cancelled."""
        while True:
            try:
                await self.reviews.give_up()
            except LedgerError as error:
                _log.warning("reviews that wait in vain stay for now: %s", error)
            await asyncio.sleep(every_s)

    async def drain(self) -> None:
        """Wait for the work that departed clients left behind, before the writer is closed."""
        await self._delivery.drain()
        await self.retrieval.drain()
        await self._settlement.drain()
        await self._keeper.close()
