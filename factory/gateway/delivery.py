"""How answers get to those who wait for them: identical requests in flight are one computation.

    delivery = Delivery(run=computation.run, settlement=settlement, traffic=traffic)
    reply = await delivery.whole(journey, call)
    reply_or_events = await delivery.stream(journey, call)

Whoever asked first pays; the computation goes on while anybody waits.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial

from factory.gateway.cache import Entry
from factory.gateway.call import Call, Request
from factory.gateway.computation import Part, Yielded
from factory.gateway.errors import ApiError
from factory.gateway.flights import Boarding, Flights
from factory.gateway.journey import Journey
from factory.gateway.replies import (
    EVENTS,
    Events,
    Rendered,
    Reply,
    Stamp,
    error_event,
    relayed,
)
from factory.gateway.settlement import Settlement
from factory.telemetry.traffic import Traffic

Run = Callable[[Journey, Call], AsyncGenerator[Yielded, None]]
"""Computes an answer: its parts where it is streamed, and at last what may be kept."""


class Delivery:
    """The flights of one gateway, and their passengers."""

    def __init__(self, *, run: Run, settlement: Settlement, traffic: Traffic) -> None:
        self._run = run
        self._settlement = settlement
        self._traffic = traffic
        self._flights: Flights[Part, Entry] = Flights()

    async def hand_over(self, journey: Journey, call: Call, entry: Entry) -> Reply:
        """An answer from tier 0: free, and settled as every other."""
        journey.reuse(entry)
        await self._settlement.ok(journey)
        return finished(journey, call.request, entry.rendered)

    def _board(self, journey: Journey, call: Call) -> Boarding[Part, Entry]:
        # A key with bounds of its own must not decide for those that have none.
        key = journey.key
        bounded = key.limits.model_fields_set or key.budget.model_fields_set
        mark = f"{call.key}/{key.key_id if bounded else ''}" if call.key else journey.request_id
        boarding = self._flights.join(mark.encode(), partial(self._run, journey, call))
        journey.pays = boarding.leader
        if not boarding.leader:
            journey.cache = "shared"
        return boarding

    async def whole(self, journey: Journey, call: Call) -> Reply:
        """The answer at once, and settled. Raises `ApiError`."""
        with self._board(journey, call) as boarding:
            entry = await boarding.result()
        return await self._landed(journey, call, entry)

    async def stream(self, journey: Journey, call: Call) -> Reply | Events:
        """Begin a stream: wait for its first part, so that errors before it stay plain."""
        async with self._settlement.of(journey, lambda: not journey.pays):
            boarding = self._board(journey, call)
            try:
                first = await anext(boarding, None)
                if first is None:
                    return await self._landed(journey, call, await boarding.result())
                journey.served = first.served
                journey.tier = first.served.tier if journey.pays else 0
                seconds = journey.elapsed_ms / 1000
                self._traffic.first_token(journey.endpoint, journey.tier, seconds)
                events = self._events(journey, call, boarding, first)
                return Events(events, journey.headers(final=False))
            except BaseException:
                boarding.leave()
                raise

    async def _landed(self, journey: Journey, call: Call, entry: Entry) -> Reply:
        if not journey.pays:
            return await self.hand_over(journey, call, entry)
        return finished(journey, call.request, entry.rendered)

    async def _events(
        self, journey: Journey, call: Call, boarding: Boarding[Part, Entry], first: Part
    ) -> AsyncGenerator[bytes, None]:
        """The rest of a stream for one of its passengers."""
        stamp, request = _stamp(journey), call.request
        shows = request.shows_logprobs
        try:
            async with self._settlement.of(journey, lambda: not journey.pays):
                with boarding:
                    yield relayed(stamp, first.served.label, first.chunk, shows)
                    async for part in boarding:
                        if event := relayed(stamp, part.served.label, part.chunk, shows):
                            yield event
                    entry = await boarding.result()
                if not journey.pays:
                    journey.reuse(entry)
                    await self._settlement.ok(journey)
        except ApiError as error:
            yield error_event(error)
            return
        yield entry.rendered.ending(stamp, journey.figures(), request.include_usage)

    async def drain(self) -> None:
        """Wait for the work that departed clients left behind."""
        await self._flights.drain()


def _stamp(journey: Journey) -> Stamp:
    return Stamp(journey.request_id, int(journey.created_at.timestamp()))


def finished(journey: Journey, request: Request, rendered: Rendered) -> Reply:
    """The reply with an answer that is there; a stream is replayed."""
    stamp = _stamp(journey)
    if request.stream:
        body = rendered.replay(stamp, journey.figures(), request.include_usage)
        return Reply(body, journey.headers(), EVENTS)
    return Reply(rendered.completion(stamp), journey.headers())
