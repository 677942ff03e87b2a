"""The embeddings route: each text is computed once, the rest comes from tier 0.

    body = await embedding.run(journey, call)    # bytes; settled
    embedded = await embedding.vectors(journey, call, served)    # charged

A text that was embedded before, by the same model for the same team, is free. The others go to the
engine together, which batches them with those of other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from cachetools import LRUCache

from factory.config import Endpoint
from factory.gateway.answers import estimate_tokens
from factory.gateway.awakening import Awakening
from factory.gateway.breakers import Breakers
from factory.gateway.call import Call
from factory.gateway.embedding_body import EmbeddingRequest, embeddings_reply
from factory.gateway.engine import Vectors
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.journey import Journey
from factory.gateway.patience import Patience, as_engine_error
from factory.gateway.purse import Purse, Purses
from factory.gateway.served import Served
from factory.gateway.settlement import Settlement
from factory.routing.ladder import Rung, climbable

_Known = LRUCache[tuple[str, str, str], tuple[Vectors, int]]

E = TypeVar("E", bound=EmbeddingRequest)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The embeddings of one request."""

    vectors: Vectors
    """Float32, of shape (texts, dimensions)."""
    tokens: int
    computed: bool
    """False when all of them were known before, so nothing was charged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What every embeddings request of one gateway shares."""

    settlement: Settlement
    purses: Purses
    breakers: Breakers
    patience: Patience
    awakening: Awakening
    known: _Known
    """Vectors and token counts of texts, by team, model version and text."""

    async def run(self, journey: Journey, call: Call[EmbeddingRequest]) -> bytes:
        """The reply to a request, settled. Raises `ApiError`."""
        served = self.served(call.endpoint, call.served)
        embedded = await self.vectors(journey, call, served)
        body = embeddings_reply(call.request, served.label, embedded.vectors, embedded.tokens)
        journey.embedded(served, embedded.tokens, embedded.computed)
        await self.settlement.ok(journey)
        return body

    def served(self, endpoint: Endpoint, among: Mapping[int, Served]) -> Served:
        """Who embeds for an endpoint now. Raises `ApiError` 503 when nobody can."""
        rungs = [
            Rung(tier, one.external, one.off or self.breakers.why_not(one))
            for tier, one in among.items()
        ]
        ladder = climbable(endpoint, rungs)
        if not ladder.usable:
            why = "; ".join(why for _, why in ladder.blocked) or "the endpoint has no encoder"
            raise unavailable(f"no model can embed for this endpoint now: {why}", 5)
        return among[ladder.usable[0]]

    async def vectors(self, journey: Journey, call: Call[E], served: Served) -> Embedded:
        """The embeddings of a request's texts, charged but not settled. Raises `ApiError`."""
        asked = call.request
        found = self._found(journey, call, served)
        missing = [text for text in dict.fromkeys(asked.texts) if text not in found]
        if missing:
            await self.awakening.risen(served, self.patience.attempt_s)
            purse = self.purses.of(journey, call)
            found |= await self._compute(journey, served, purse, missing)
            for text in missing:
                if self.known.maxsize:
                    self.known[journey.key.team, served.version, text] = found[text]
        else:
            journey.cache = "hit"
        vectors = np.stack([found[text][0] for text in asked.texts])
        tokens = sum(found[text][1] for text in asked.texts)
        return Embedded(vectors, tokens, computed=bool(missing))

    def _found(
        self, journey: Journey, call: Call[E], served: Served
    ) -> dict[str, tuple[Vectors, int]]:
        if 0 not in call.endpoint.tiers or not self.known.maxsize:
            return {}
        journey.cache = "miss"
        team, version = journey.key.team, served.version
        hits = {text: self.known.get((team, version, text)) for text in call.request.texts}
        return {text: hit for text, hit in hits.items() if hit is not None}

    async def _compute(
        self, journey: Journey, served: Served, purse: Purse, texts: list[str]
    ) -> dict[str, tuple[Vectors, int]]:
        expected = sum(estimate_tokens(len(text)) + 2 for text in texts)
        if denial := await purse.hold(served.price.nano_usd(expected, 0)):
            raise denial.error
        assert served.embedder is not None
        begun = journey.clock.monotonic()
        tokens, reason = 0, "the client left"
        try:
            async with asyncio.timeout(self.patience.attempt_s):
                vectors, counts = await served.embedder.embed(texts)
            tokens, reason = sum(counts), f"tier {served.tier} embedded {len(texts)} texts"
            self.breakers.succeeded(served)
        except Exception as error:
            problem = as_engine_error(error)
            reason = f"failed: {problem.message}"
            if problem.rejected:
                raise ApiError(400, "rejected_by_model", problem.message) from error
            self.breakers.failed(served)
            raise unavailable(f"no model could embed: {problem.message}") from error
        finally:
            latency = journey.clock.monotonic() - begun
            journey.engine_s += latency
            journey.charge(served, tokens, 0, latency * 1000, reason, "embedding")
        return dict(zip(texts, zip(vectors, counts, strict=True), strict=True))
