"""Before a model is asked: which tiers can hold this request, and where it starts.

planned = await plan(call, settings.routing, patterns, why_not, estimate)    # ApiError 400, 503
planned.ladder.usable, planned.route.tier, planned.bodies[1]
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from factory.config import Limits, Routing
from factory.gateway.answers import estimate_tokens
from factory.gateway.call import Call, Request
from factory.gateway.engine import Body
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.experience import Experience
from factory.gateway.learning import Learned
from factory.gateway.served import Served
from factory.routing.features import extract
from factory.routing.ladder import Ladder, Rung, climbable
from factory.routing.rules import Route, choose

_LONG = 8_000
"""Characters from which a prompt is counted in a thread, so that other requests go on."""

_USUAL_ANSWER = 1024
"""Tokens reserved for an answer of a provider when nobody bounds its length."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided before the first attempt."""

    call: Call
    ladder: Ladder
    route: Route
    start: int
    bodies: Mapping[int, Body]
    """The engine's request, by usable tier."""
    prompt_tokens: Mapping[int, int]
    """Prompt length by tier: counted or estimated; an upper bound where `counters` has the tier."""
    longest_answers: Mapping[int, int]
    """Tokens of one choice that money is held for, by tier."""
    counters: Mapping[int, Callable[[], int]]
    """Counts the prompt, for those tiers where that was not necessary so far."""

    def length(self, tier: int) -> int:
        """The prompt's length, counted where only a bound is known."""
        counter = self.counters.get(tier)
        return self.prompt_tokens[tier] if counter is None else counter()


async def plan(
    call: Call,
    routing: Routing,
    patterns: Sequence[re.Pattern[str]],
    why_not: Callable[[Served], str],
    learned: Learned,
    experience: Experience,
) -> Plan:
    """The plan for one request. `why_not` says of a model why it is not asked now, or nothing.

    Raises `ApiError` 400 `context_length_exceeded` when no tier can hold the request, 400 when it
    exceeds the limits of its key, team or endpoint, and 503 when no tier may answer otherwise.
    """
    chat, limits = call.request, call.limits
    _within(chat, limits)
    turns = chat.turns
    characters = sum(len(turn["content"]) for turn in turns)
    counts: dict[int, int] = {}
    counters: dict[int, Callable[[], int]] = {}
    bodies: dict[int, Body] = {}
    longest: dict[int, int] = {}
    rungs: list[Rung] = []
    full: list[tuple[int, int]] = []
    for tier, one in call.served.items():
        off = one.off or why_not(one)
        if chat.uses_tools and not one.tools:
            off = off or "its engine does not recognize tool calls (engine_kwargs.tool_call_parser)"
        if one.count_tokens is None:
            counts[tier] = estimate_tokens(characters)
            too_long = ""
        else:
            bound = _short(one, chat, limits, routing)
            if bound is not None:
                counters[tier] = partial(one.count_tokens, turns)
            counts[tier] = await _count(one, turns, characters) if bound is None else bound
            too_long = _too_long(counts[tier], chat.limit, one.max_model_len)
            if too_long and not off:
                full.append((one.max_model_len, counts[tier]))
        rungs.append(Rung(tier, one.external, off or too_long))
        bodies[tier] = _body(chat, one, counts[tier], limits)
        room = max(one.max_model_len - counts[tier], 1)
        most = bodies[tier].get("max_tokens") or chat.limit or min(room, _USUAL_ANSWER)
        longest[tier] = most
    ladder = climbable(call.endpoint, rungs)
    first = next((counts[tier] for tier in ladder.usable), 0)
    if limits.max_input_tokens is not None and first > limits.max_input_tokens:
        raise _too_many(first, limits.max_input_tokens)
    route = choose(
        extract([(turn["role"], turn["content"]) for turn in turns], first, patterns),
        call.endpoint,
        ladder.usable,
        routing,
        learned.estimate,
        learned.router_threshold,
    )
    if route.tier is None:
        if full:
            raise _context_exceeded(*max(full), chat.limit)
        why = "; ".join(why for _, why in ladder.blocked) or "the endpoint has only tier 0"
        raise unavailable(f"no model can answer for this endpoint now: {why}", 5)
    route = _worthwhile(call, ladder, route, first, learned, experience)
    assert route.tier is not None
    return Plan(call, ladder, route, route.tier, bodies, counts, longest, counters)


def _worthwhile(
    call: Call,
    ladder: Ladder,
    route: Route,
    prompt_tokens: int,
    learned: Learned,
    experience: Experience,
) -> Route:
    """The route, or the next tier up when trying the cheap one first does not pay."""
    above = () if route.tier is None else ladder.above(route.tier)
    if not above or route.tier is None:
        return route
    found = experience.worth(call, route.tier, above[0], prompt_tokens, learned.estimate)
    if found is None or not found.skip:
        return route
    return replace(route, tier=above[0], reasons=(*route.reasons, *found.reasons))


def _within(chat: Request, limits: Limits) -> None:
    most = limits.max_output_tokens
    if most is not None and chat.limit is not None and chat.limit > most:
        raise ApiError(
            400,
            "max_output_tokens_exceeded",
            f"max_tokens asks for {chat.limit}, but this key, team or endpoint allows {most} "
            "(max_output_tokens); ask for fewer",
            param="max_tokens",
        )


def _too_many(tokens: int, most: int) -> ApiError:
    return ApiError(
        400,
        "max_input_tokens_exceeded",
        f"the prompt has {tokens} tokens, but this key, team or endpoint allows {most} "
        "(max_input_tokens); shorten it",
        param="messages",
    )


def _short(served: Served, chat: Request, limits: Limits, routing: Routing) -> int | None:
    """An upper bound of the prompt's length, where no decision needs to know it better."""
    wanted = chat.limit or limits.max_output_tokens
    if served.most_tokens is None or wanted is None:
        return None
    bound = served.most_tokens(chat.turns)
    most = min(
        served.max_model_len - wanted,
        routing.hard_prompt_tokens,
        limits.max_input_tokens or served.max_model_len,
    )
    return bound if bound is not None and bound <= most else None


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


def _body(chat: Request, served: Served, prompt_tokens: int, limits: Limits) -> Body:
    """The client's fields. Without a limit of its own an answer may fill the rest of the context,
    up to what the key, team and endpoint allow."""
    body = chat.engine_body()
    if chat.limit is not None:
        return body
    most = limits.max_output_tokens
    if served.count_tokens is not None:
        room = max(served.max_model_len - prompt_tokens, 1)
        most = room if most is None else min(room, most)
    return body if most is None else {**body, "max_tokens": most}


def _context_exceeded(room: int, prompt: int, limit: int | None) -> ApiError:
    asked = f" and max_tokens asks for {limit}" if limit is not None else ""
    return ApiError(
        400,
        "context_length_exceeded",
        f"the context holds {room} tokens, but the messages have {prompt}{asked}; "
        "shorten the messages or lower max_tokens",
        param="messages",
    )
