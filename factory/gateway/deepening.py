"""The second look of a learned router: an encoder's vector, where that is worth its time and price.

    learned = await deepening.look(journey, call, learned)    # a better estimate, or as it was

Whether to look is `factory.routing.encoder`'s decision. The encoder is one that an embeddings
endpoint serves; its call is charged to the request and shown among its reasons. Whatever goes
wrong with it leaves the first estimate in force.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import numpy as np

from factory.gateway.answers import estimate_tokens
from factory.gateway.awakening import Awakening
from factory.gateway.breakers import Breakers
from factory.gateway.call import Call
from factory.gateway.experience import WEIGHT, Experience
from factory.gateway.journey import Journey
from factory.gateway.learning import Learned
from factory.gateway.patience import as_engine_error
from factory.gateway.purse import Purses
from factory.gateway.served import Served, Serving
from factory.routing.encoder import Spend, worth
from factory.routing.fitted import Deep, joined

_USUAL_ANSWER = 200
"""Tokens of an answer that nobody bounds, when prices are compared."""

_PATIENCE = 10.0
"""Times its usual duration for which the encoder is waited for, and at least a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deepening:
    """What the second looks of one gateway share."""

    serving: Serving
    experience: Experience
    breakers: Breakers
    purses: Purses
    awakening: Awakening
    taken_ms: dict[str, float] = field(default_factory=dict)
    """What each encoder has taken lately, an exponentially weighted mean."""

    async def look(self, journey: Journey, call: Call, learned: Learned) -> Learned:
        """The same with the second router's estimate, where it was asked."""
        deep, question = learned.deep, call.request.last_question
        if deep is None or learned.estimate is None or learned.router_threshold is None:
            return learned
        served = self._served(deep.model, call)
        if question is None or served is None:
            return learned
        expected = served.price.nano_usd(estimate_tokens(len(question)) + 2, 0)
        spend = self._worth(call, learned, deep, expected)
        journey.reasons.extend(spend.reasons)
        if not spend.use:
            return learned
        if served.asleep:
            self.awakening.wake(served)
            journey.reasons.append("the encoder is asleep and is being woken; the first look holds")
            return learned
        if await self.purses.of(journey, call).hold(expected):
            return learned
        vector = await self._encoded(journey, served, deep, question)
        if vector is None:
            return learned
        shallow = np.frombuffer(call.embedding, dtype="<f4")
        return replace(learned, estimate=deep.router.predict(question, joined(shallow, vector)))

    def _served(self, model: str, call: Call) -> Served | None:
        found = (
            one
            for tiers in self.serving.values()
            for one in tiers.values()
            if one.embedder is not None and one.model == model and not one.off
        )
        served = next(found, None)
        if served is None or self.breakers.why_not(served):
            return None
        # A restricted prompt stays in the cluster, whatever a second look may be worth.
        return None if served.external and call.endpoint.sensitivity == "restricted" else served

    def _worth(self, call: Call, learned: Learned, deep: Deep, expected: int) -> Spend:
        assert learned.estimate is not None
        assert learned.router_threshold is not None
        tokens = estimate_tokens(sum(len(turn["content"]) for turn in call.request.turns))
        answer = call.request.limit or _USUAL_ANSWER
        prices = [one.price.nano_usd(tokens, answer) for one in call.served.values()]
        target, lowest = call.endpoint.target.ttft_ms, min(call.served)
        usual = self.experience.ttft_ms(call.name, lowest)
        return worth(
            margin=learned.estimate.margin(learned.router_threshold),
            spread=deep.spread,
            dear_nusd=max(prices),
            cheap_nusd=min(prices),
            encoder_nusd=expected,
            encoder_ms=self.taken_ms.get(deep.model, deep.ms),
            slack_ms=None if target is None else target - usual,
        )

    async def _encoded(
        self, journey: Journey, served: Served, deep: Deep, question: str
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
        assert served.embedder is not None
        begun = journey.clock.monotonic()
        usual = self.taken_ms.get(deep.model, deep.ms)
        tokens, reason, found = 0, "the client left", None
        try:
            async with asyncio.timeout(max(_PATIENCE * usual / 1000, 1.0)):
                vectors, counts = await served.embedder.embed([question])
            tokens, reason = counts[0], "a second look for the router"
            self.breakers.succeeded(served)
            found = np.asarray(vectors[0], dtype=np.float32)
        except Exception as error:
            problem = as_engine_error(error)
            reason = f"the encoder did not help: {problem.message}"
            if not problem.rejected:
                self.breakers.failed(served)
            journey.reasons.append(reason)
        finally:
            latency = (journey.clock.monotonic() - begun) * 1000
            if found is not None:
                self.taken_ms[deep.model] = usual + WEIGHT * (latency - usual)
            journey.charge(served, tokens, 0, latency, reason, "embedding")
        return found
