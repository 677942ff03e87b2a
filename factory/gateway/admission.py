"""How a request gets in: who asks, what it may use, and its rates.

journey = await admission.begin(authorization, "chat")           # ApiError 401
call = admission.permitted(journey, request, "generate")         # ApiError 400, 403, 404, 429
admission.count(journey, tokens=expected_tokens(call.request))   # ApiError 413, 429
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

from factory.config import Settings
from factory.gateway import access
from factory.gateway.answers import estimate_tokens
from factory.gateway.call import Asked, Call, Q, scopes, tightest
from factory.gateway.clock import Clock
from factory.gateway.engine import Route
from factory.gateway.journey import Journey
from factory.gateway.rates import Rates, refusal
from factory.gateway.served import Pinned, Serving
from factory.ledger.keys import ApiKey
from factory.ledger.store import Ledger

_PREFIXES: dict[Route, str] = {
    "chat": "chatcmpl",
    "completions": "cmpl",
    "embeddings": "embd",
    "store": "vsmk",
    "file": "vsfl",
    "search": "vsse",
}


def new_id(route: Route) -> str:
    """A fresh request id; it is also the `id` of the completion, and begins as OpenAI's do."""
    return f"{_PREFIXES[route]}-{uuid.uuid4().hex}"


class Admission:
    """The door of one gateway process."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        serving: Serving,
        pinned: Pinned,
        clock: Clock,
        ids: Callable[[Route], str],
    ) -> None:
        """`ids` makes a request's id."""
        self._settings = settings
        self._serving = serving
        self._pinned = pinned
        self._clock = clock
        self._ids = ids
        self._keys = access.Keys(ledger, clock)
        self._rates = Rates(share=1 / settings.gateway.replicas)
        self._top_price = settings.models[settings.top_model].price

    async def key(self, authorization: str | None) -> ApiKey:
        """Who is asking. Raises `ApiError` 401."""
        return await self._keys.check(authorization)

    async def begin(self, authorization: str | None, route: Route) -> Journey:
        """The journey of a request that has just arrived. Raises `ApiError` 401."""
        started = self._clock.monotonic()
        return self.journey(await self._keys.check(authorization), route, started)

    def journey(self, key: ApiKey, route: Route, started: float | None = None) -> Journey:
        """A journey for a key that is known already; it started now where nothing else is said."""
        return Journey(
            request_id=self._ids(route),
            created_at=self._clock.now(),
            started=self._clock.monotonic() if started is None else started,
            clock=self._clock,
            key=key,
            top_price=self._top_price,
        )

    def permitted(
        self, journey: Journey, request: Q, task: access.Task, approved: bool = False
    ) -> Call[Q]:
        """The call, counted against the rates. Raises `ApiError` 400, 403, 404, 429."""
        name, endpoint, served = access.permit(
            self._settings, self._serving, self._pinned, journey.key, request.model, task
        )
        journey.endpoint = name
        journey.tags = request.metadata or {}
        among = scopes(self._settings, journey.key, name)
        self.count(journey, requests=1)
        return Call(
            name=name,
            endpoint=endpoint,
            request=request,
            served=served,
            limits=tightest([limits for _, limits in among]),
            approved=approved,
        )

    def count(self, journey: Journey, *, requests: int = 0, tokens: int = 0) -> None:
        """Count the request, or its tokens, against the rates. Raises `ApiError` 429 or 413."""
        among = scopes(self._settings, journey.key, journey.endpoint)
        now = self._clock.monotonic()
        admission = self._rates.admit(among, tokens, now, requests=requests)
        journey.told |= admission.headers()
        if not admission.ok:
            raise refusal(admission)
        if admission.debits:
            journey.after.append(partial(self._rates.settle, admission))


def expected_tokens(request: Asked) -> int:
    """Tokens that a request is reckoned with until it is answered, from above."""
    prompt = estimate_tokens(sum(map(len, request.texts)))
    return prompt + (request.limit or 0) * request.choices
