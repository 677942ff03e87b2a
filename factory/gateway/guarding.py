"""The guard in a request's way: its filters by endpoint, and the queue where people decide.

call = await guarding.look(journey, call)         # redacted or pinned; ApiError: rejected, held
screening = guarding.screening(journey, call)     # for its answer
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from functools import partial
from typing import cast

from factory.config import ConfigError, Guard, Settings
from factory.gateway.answers import Answer
from factory.gateway.call import Call, Q
from factory.gateway.errors import ApiError
from factory.gateway.guard import Chain, Decision, check_schema
from factory.gateway.journey import Journey
from factory.gateway.reviews import Reviews
from factory.gateway.screening import Screening

_LONG = 2_000
"""Characters from which texts are looked at in a thread, so that other requests go on."""


class Guarding:
    """The chains of one configuration."""

    def __init__(self, settings: Settings, reviews: Reviews) -> None:
        """Raises `ConfigError` for a filter that cannot be made."""
        self._reviews = reviews
        self._guards: dict[str, Guard] = {
            name: endpoint.guard or settings.guard for name, endpoint in settings.endpoints.items()
        }
        self._chains = {name: _chain(name, guard) for name, guard in self._guards.items()}
        self._marks = {
            name: hashlib.blake2b(guard.model_dump_json().encode(), digest_size=8).hexdigest()
            for name, guard in self._guards.items()
        }

    def mark(self, endpoint: str) -> str:
        """Changes with the endpoint's filters; part of every cache key."""
        return self._marks[endpoint]

    async def look(self, journey: Journey, call: Call[Q]) -> Call[Q]:
        """The call as it may go on.

        Raises `ApiError` 400 when a filter rejects it, 202 when a person must look at it first.
        """
        request = call.request
        if request.json_schema is not None and (wrong := check_schema(request.json_schema)):
            raise ApiError(
                400, "invalid_json_schema", wrong, param="response_format.json_schema.schema"
            )
        texts = request.texts
        chain = self._chains[call.name]
        embedded = request.route not in ("chat", "completions")
        look = chain.look_at_each if embedded else chain.look_at_input
        if sum(map(len, texts)) > _LONG:
            decision = await asyncio.to_thread(look, texts)
        else:
            decision = look(texts)
        return await self._apply(journey, call, texts, decision)

    async def _apply(
        self, journey: Journey, call: Call[Q], texts: tuple[str, ...], decision: Decision
    ) -> Call[Q]:
        journey.reasons += decision.reasons
        if decision.act == "reject":
            why = "; ".join(decision.reasons)
            raise ApiError(400, "request_rejected", f"the guard refuses this request: {why}")
        endpoint = call.endpoint
        if decision.onprem and endpoint.sensitivity != "restricted":
            endpoint = endpoint.model_copy(update={"sensitivity": "restricted"})
        request = call.request
        if decision.texts != texts:
            request = cast(Q, request.with_texts(decision.texts))
        call = replace(call, endpoint=endpoint, request=request)
        if decision.act == "review" and not call.approved:
            raise await self._reviews.hold(journey, call, "input", decision.reasons)
        return call

    def screening(self, journey: Journey, call: Call) -> Screening:
        """What looks at the answers to a call."""
        request = call.request
        return Screening(
            self._chains[call.name],
            self._guards[call.name],
            schema=request.json_schema or ({} if request.wants_json else None),
            choices=request.choices,
            logprobs=request.shows_logprobs,
            approved=call.approved,
            note=journey.reasons.extend,
            hold=partial(self._hold_answer, journey, call),
        )

    async def _hold_answer(
        self, journey: Journey, call: Call, answer: Answer, reasons: tuple[str, ...]
    ) -> ApiError:
        return await self._reviews.hold(journey, call, "output", reasons, answer)


def _chain(endpoint: str, guard: Guard) -> Chain:
    try:
        return Chain.of(guard)
    except ValueError as error:
        raise ConfigError(f"endpoints.{endpoint}: guard: {error}") from error
