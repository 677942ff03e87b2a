"""A stream that is passed on as it is generated, and settled before its `[DONE]`.

    async for event in relay(live, cascade, ...): ...    # bytes of server-sent events

Closing the generator, as when the client leaves, stops the model and charges what it generated.
An error after the first token reaches the client as an SSE `data: {"error": ...}` event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from factory.gateway.answers import Answer
from factory.gateway.body import ChatRequest
from factory.gateway.cascade import Cascade, Live, as_engine_error, ended_early
from factory.gateway.engine import Chunk
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.journey import CLIENT_CLOSED, Journey, Settlement
from factory.gateway.replies import Rendered, Stamp, error_event, relayed, render
from factory.gateway.served import Served

Settle = Callable[[Settlement, int, str | None], Awaitable[None]]
"""Settles this request; raises `ApiError` when the ledger does not take it."""
Keep = Callable[[Rendered, Answer, Served], None]
"""Puts the finished answer into the cache."""


async def relay(
    live: Live,
    cascade: Cascade,
    journey: Journey,
    stamp: Stamp,
    chat: ChatRequest,
    settle: Settle,
    keep: Keep,
) -> AsyncGenerator[bytes, None]:
    """The events of one live stream."""
    label = live.served.label
    show = bool(chat.logprobs)
    over = False
    try:
        try:
            async with aclosing(_chunks(live, cascade.patience.idle_s)) as chunks:
                async for chunk in chunks:
                    if event := relayed(stamp, label, chunk, show):
                        yield event
            if live.gathering.finish_reason is None:
                raise ended_early()
        except Exception as failure:
            over = True
            yield await _broken(live, cascade, journey, settle, failure)
            return
        over = True
        answer = live.gathering.answer(live.prompt_tokens)
        cacheable = cascade.finish(live, answer)
        journey.answered(
            live.served, live.served.tier, answer.prompt_tokens, answer.completion_tokens
        )
        try:
            await settle("ok", 200, None)
        except ApiError as problem:
            yield error_event(problem)
            return
        rendered = render(answer, label, show)
        if cacheable:
            keep(rendered, answer, live.served)
        yield rendered.ending(stamp, journey.figures(), chat.include_usage)
    finally:
        if not over:
            _charge_partial(live, cascade, journey, "the client left")
            await settle("error", CLIENT_CLOSED, "the client left before the end of the stream")


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


async def _broken(
    live: Live, cascade: Cascade, journey: Journey, settle: Settle, failure: Exception
) -> bytes:
    problem = as_engine_error(failure)
    _charge_partial(live, cascade, journey, f"failed: {problem.message}")
    error = unavailable(f"the answer broke off: {problem.message}")
    try:
        await settle("error", error.status, error.message)
    except ApiError as unsettled:
        error = unsettled
    return error_event(error)


def _charge_partial(live: Live, cascade: Cascade, journey: Journey, reason: str) -> None:
    cascade.charge(live.served, None, live.gathering, live.prompt_tokens, live.opened, reason, True)
    charge = journey.charges[-1]
    journey.answered(live.served, live.served.tier, charge.prompt_tokens, charge.completion_tokens)
