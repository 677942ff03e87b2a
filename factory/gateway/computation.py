"""One computation: a turn, a plan, the climb, the guard's look at the answer, its settlement.

    flights.join(key, lambda: computation.run(journey, call))    # parts, then Landed(entry)

It belongs to a flight, not to a client: whoever asked first pays for it, and it goes on as long as
anybody waits. Whatever ends it, the payer's journey is settled in the ledger before it is over.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from factory.config import Settings
from factory.gateway.awakening import Awakening
from factory.gateway.breakers import Breakers
from factory.gateway.cache import Entry
from factory.gateway.call import Call, scopes
from factory.gateway.cascade import Cascade, Live, Rules
from factory.gateway.engine import Chunk
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.experience import Experience
from factory.gateway.fairness import Caller, engine_priority
from factory.gateway.flights import Landed
from factory.gateway.journey import Journey
from factory.gateway.learning import Learned
from factory.gateway.patience import Patience, as_engine_error, ended_early
from factory.gateway.plan import Plan, plan
from factory.gateway.purse import Purses
from factory.gateway.replies import render
from factory.gateway.screening import Screening
from factory.gateway.served import Served
from factory.gateway.settlement import Settlement
from factory.gateway.turns import Turn, Turns, bounds


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer that may be sent already."""

    served: Served
    """Who says it."""
    chunk: Chunk


Yielded = Part | Landed[Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """What every computation of one gateway shares."""

    settings: Settings
    settlement: Settlement
    turns: Turns
    awakening: Awakening
    breakers: Breakers
    experience: Experience
    patience: Patience
    jitter: Callable[[], float]
    patterns: tuple[re.Pattern[str], ...]
    purses: Purses
    screening: Callable[[Journey, Call], Screening]
    """What looks at its answer."""
    keep: Callable[[Journey, Call, Entry], None]
    """Puts a finished answer into the caches."""
    learned: Callable[[Call], Learned]
    """What was learned and calibrated for a call's endpoint."""
    deepen: Callable[[Journey, Call, Learned], Awaitable[Learned]]
    """Looks again with an encoder, where that pays."""
    sample: Callable[[Journey, Call], None]
    """Notes what a router can learn from a finished request."""

    async def run(self, journey: Journey, call: Call) -> AsyncGenerator[Yielded, None]:
        """Parts that may be sent already, then the settled answer. Raises `ApiError`, settled."""
        async with self.settlement.of(journey):
            among = scopes(self.settings, journey.key, call.name)
            priority = self.settings.teams[journey.key.team].priority
            replicas = self.settings.gateway.replicas
            async with (
                self.turns.take(
                    priority, bounds(among, replicas), self._caller(journey, call)
                ) as turn,
                aclosing(self._answer(journey, call, turn)) as parts,
            ):
                async for part in parts:
                    yield part

    def _ordered(self, planned: Plan, journey: Journey) -> Plan:
        """The plan with the class and priority that engines order their own queues by."""
        team = self.settings.teams[journey.key.team]
        order = engine_priority(self._caller(journey, planned.call), team.priority)
        bodies = {
            tier: {**body, "priority": order} if planned.call.served[tier].prioritizes else body
            for tier, body in planned.bodies.items()
        }
        return replace(planned, bodies=bodies)

    def _caller(self, journey: Journey, call: Call) -> Caller:
        team = journey.key.team
        # The part before the + is the base that several adapters share an engine with.
        engines = (one.version.split("+")[0] for one in call.served.values() if not one.external)
        return Caller(
            team=team,
            weight=self.settings.teams[team].weight,
            class_=call.endpoint.class_,
            engines=frozenset(engines),
        )

    async def _answer(
        self, journey: Journey, call: Call, turn: Turn
    ) -> AsyncGenerator[Yielded, None]:
        learned = await self.deepen(journey, call, self.learned(call))
        planned = await plan(
            call,
            self.settings.routing,
            self.patterns,
            self.breakers.why_not,
            learned,
            self.experience,
        )
        planned = self.awakening.around(self._ordered(planned, journey), call.served)
        await self.awakening.rouse(call.served[planned.start], turn, self.patience.attempt_s)
        screening = self.screening(journey, call)
        cascade = self._cascade(journey, call, planned, screening, learned)
        streams = bool(call.request.stream) and screening.may_stream
        final = await cascade.run(wants_stream=streams)
        served = final.served
        if isinstance(final, Live):
            async with aclosing(self._relay(final, cascade, journey, screening)) as chunks:
                async for chunk in chunks:
                    yield Part(served, chunk)
            said = final.gathering.answer(final.prompt_tokens)
            cacheable = cascade.finish(final, said)
            answer = screening.told(said)
        else:
            journey.served, cacheable = served, final.cacheable
            answer = await screening.whole(final.answer)
        journey.answered(served, served.tier, answer.prompt_tokens, answer.completion_tokens)
        request = call.request
        rendered = render(answer, served.label, request.shows_logprobs, request.route)
        await self.settlement.ok(journey)
        entry = Entry(rendered, answer, served, journey.confidence, journey.degraded)
        if cacheable:
            self.keep(journey, call, entry)
        self.sample(journey, call)
        yield Landed(entry)

    def _cascade(
        self, journey: Journey, call: Call, planned: Plan, screening: Screening, learned: Learned
    ) -> Cascade:
        rules = Rules(
            threshold=learned.threshold,
            patience=self.patience,
            jitter=self.jitter,
            breakers=self.breakers,
            samples=call.endpoint.self_consistency,
            experience=self.experience,
            hold=self.purses.of(journey, call).hold,
            unfit=screening.unfit,
        )
        return Cascade(planned, journey, rules)

    async def _relay(
        self, live: Live, cascade: Cascade, journey: Journey, screening: Screening
    ) -> AsyncGenerator[Chunk, None]:
        """A live stream, as far as the guard has seen it."""
        journey.served, journey.tier = live.served, live.served.tier
        why = "the client left"
        try:
            async with aclosing(_chunks(live, self.patience.idle_s)) as chunks:
                async for chunk in chunks:
                    for safe in screening.feed(chunk):
                        yield safe
            if live.gathering.finish_reason is None:
                raise ended_early()
            why = ""
        except ApiError as error:
            why = error.message
            raise
        except Exception as failure:
            problem = as_engine_error(failure)
            self.breakers.failed(live.served)
            why = f"failed: {problem.message}"
            raise unavailable(f"the answer broke off: {problem.message}") from failure
        finally:
            if why:
                cascade.charge_partial(live, why)


async def _chunks(live: Live, idle_s: float) -> AsyncGenerator[Chunk, None]:
    """The chunks of the engine, each awaited for at most `idle_s` seconds."""
    async with aclosing(live.stream) as stream:
        yield live.first
        while True:
            async with asyncio.timeout(idle_s):
                chunk = await anext(stream, None)
            if chunk is None:
                return
            live.gathering.add(chunk)
            yield chunk
