"""Before a model is asked: which tiers can hold this request, and where it starts.

planned = await plan(chat, endpoint, served, settings.routing, patterns)    # ApiError 400, 503
planned.ladder.usable, planned.route.tier, planned.bodies[1]
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.config import Endpoint, Routing
from factory.gateway.answers import estimate_tokens
from factory.gateway.body import ChatRequest
from factory.gateway.engine import Body
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.served import Served
from factory.routing.features import extract
from factory.routing.ladder import Ladder, Rung, climbable
from factory.routing.rules import Route, choose

_LONG = 8_000
"""Characters from which a prompt is counted in a thread, so that other requests go on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided before the first attempt."""

    served: Mapping[int, Served]
    ladder: Ladder
    route: Route
    start: int
    bodies: Mapping[int, Body]
    """The engine's request, by usable tier."""
    prompt_tokens: Mapping[int, int]
    """Counted or estimated prompt length, by tier."""


async def plan(
    chat: ChatRequest,
    endpoint: Endpoint,
    served: Mapping[int, Served],
    routing: Routing,
    patterns: Sequence[re.Pattern[str]],
) -> Plan:
    """The plan for one request.

    Raises `ApiError` 400 `context_length_exceeded` when no tier can hold it, and 503 when none
    may answer for another reason.
    """
    turns = [{"role": message.role, "content": message.text} for message in chat.messages]
    characters = sum(len(turn["content"]) for turn in turns)
    counts: dict[int, int] = {}
    bodies: dict[int, Body] = {}
    rungs: list[Rung] = []
    full: list[tuple[int, int]] = []
    for tier, one in served.items():
        if one.count_tokens is None:
            counts[tier] = estimate_tokens(characters)
            why_not = one.off
        else:
            counts[tier] = await _count(one, turns, characters)
            why_not = one.off or _too_long(counts[tier], chat.limit, one.max_model_len)
            if why_not and not one.off:
                full.append((one.max_model_len, counts[tier]))
        rungs.append(Rung(tier, one.external, why_not))
        bodies[tier] = _body(chat, one, counts[tier])
    ladder = climbable(endpoint, rungs)
    first = next((counts[tier] for tier in ladder.usable), 0)
    route = choose(
        extract([(turn["role"], turn["content"]) for turn in turns], first, patterns),
        endpoint,
        ladder.usable,
        routing,
    )
    if route.tier is None:
        if full:
            raise _context_exceeded(*max(full), chat.limit)
        why = "; ".join(why for _, why in ladder.blocked) or "the endpoint has only tier 0"
        raise unavailable(f"no model can answer for this endpoint now: {why}", 5)
    return Plan(served, ladder, route, route.tier, bodies, counts)


async def _count(served: Served, turns: Sequence[Mapping[str, str]], characters: int) -> int:
    assert served.count_tokens is not None
    try:
        if characters > _LONG:
            return await asyncio.to_thread(served.count_tokens, turns)
        return served.count_tokens(turns)
    except ValueError as error:
        raise ApiError(
            400,
            "invalid_value",
            f"the model's chat template refuses these messages: {error}",
            param="messages",
        ) from error


def _too_long(prompt: int, limit: int | None, room: int) -> str:
    wanted = 1 if limit is None else limit
    return "" if prompt + wanted <= room else f"{prompt} + {wanted} tokens exceed {room}"


def _body(chat: ChatRequest, served: Served, prompt_tokens: int) -> Body:
    """The client's fields; without its own limit an answer may fill the rest of the context."""
    body = chat.engine_body()
    if chat.limit is None and served.count_tokens is not None:
        body["max_tokens"] = max(served.max_model_len - prompt_tokens, 1)
    return body


def _context_exceeded(room: int, prompt: int, limit: int | None) -> ApiError:
    asked = f" and max_tokens asks for {limit}" if limit is not None else ""
    return ApiError(
        400,
        "context_length_exceeded",
        f"the context holds {room} tokens, but the messages have {prompt}{asked}; "
        "shorten the messages or lower max_tokens",
        param="messages",
    )
