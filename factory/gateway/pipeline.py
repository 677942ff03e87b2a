"""`Gateway`: the whole way of a chat request, without HTTP and without Ray.

    gateway = Gateway(settings, ledger, LedgerWriter(ledger), serving)
    reply = await gateway.chat(authorization="Bearer sk-factory-...", body=read_body)

`serving` maps endpoint to tier to `Served`; it is read anew for each request, so a promotion takes
effect by replacing an entry. Every request with a valid key is settled in the ledger, refused ones
too, before the last byte of its answer is handed out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from factory.config import Endpoint, Settings
from factory.gateway import access, cache, readiness
from factory.gateway.answers import Answer
from factory.gateway.body import ChatRequest, parse
from factory.gateway.cascade import Cascade, Live, Patience
from factory.gateway.clock import Clock
from factory.gateway.errors import ApiError
from factory.gateway.journey import CLIENT_CLOSED, Journey, Recorder, Settlement, settle
from factory.gateway.live import relay
from factory.gateway.plan import plan
from factory.gateway.replies import Rendered, Stamp, render
from factory.gateway.served import Served, Serving
from factory.ledger.keys import ApiKey, authenticate
from factory.ledger.report import explain
from factory.ledger.store import Ledger

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

JSON = "application/json"
EVENTS = "text/event-stream"


def new_id() -> str:
    """A fresh request id; it is also the `id` of the completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply."""

    body: bytes
    headers: Mapping[str, str]
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Events:
    """A reply that is still being generated. Whoever takes it must close `events`."""

    events: AsyncGenerator[bytes, None]
    headers: Mapping[str, str]


Opening = Callable[[], Coroutine[Any, Any, Reply | Events]]
"""Begins a stream when called. Cancelling it stops the models that were asked."""


class Gateway:
    """Answers chat requests for the endpoints of one configuration."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        recorder: Recorder,
        serving: Serving,
        *,
        patience: Patience | None = None,
        clock: Clock | None = None,
        ids: Callable[[], str] = new_id,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.serving = serving
        self._ledger = ledger
        self._recorder = recorder
        self._patience = patience or Patience()
        self._clock = clock or Clock()
        self._ids = ids
        self._jitter = jitter
        self._keys = access.Keys(partial(authenticate, ledger), self._clock.monotonic)
        self._cache = cache.ExactCache(settings.cache, self._clock.monotonic)
        self._top_price = settings.models[settings.top_model].price
        self._patterns = [re.compile(pattern) for pattern in settings.routing.hard_patterns]
        self._tasks: set[asyncio.Task[Any]] = set()

    async def chat(
        self,
        authorization: str | None,
        body: Callable[[], Awaitable[bytes]],
        cache_control: str = "",
    ) -> Reply | Opening:
        """Answer one request: at once, or for a stream that is not cached by an `Opening`.

        Raises `ApiError` for everything that ends without an answer.
        """
        started = self._clock.monotonic()
        key = await self._keys.check(authorization)
        journey = Journey(
            request_id=self._ids(),
            created_at=self._clock.now(),
            started=started,
            clock=self._clock,
            key=key,
            top_price=self._top_price,
        )
        found = await self._guarded(journey, self._arrive(journey, body, cache_control))
        if isinstance(found, Reply):
            return found
        if found.chat.stream:
            return lambda: self._guarded(journey, self._stream(journey, found))
        return await self._finish(self._guarded(journey, self._whole(journey, found)))

    async def _arrive(
        self, journey: Journey, body: Callable[[], Awaitable[bytes]], cache_control: str
    ) -> Reply | _Miss:
        chat = parse(await body())
        endpoint = access.permit(self.settings, journey.key, chat.model)
        journey.endpoint = chat.model
        served = self.serving.get(chat.model, {})
        policy = cache.policy(chat, endpoint.tiers, cache_control)
        lookup = b""
        if self._cache.on and (policy.look or policy.keep):
            lookup = self._cache.key(chat, journey.key.team, served)
            entry = self._cache.get(lookup) if policy.look else None
            if entry is not None:
                return await self._hit(journey, chat, entry)
            journey.cache = "miss"
        if policy.reason:
            journey.reasons.append(policy.reason)
        return _Miss(chat, endpoint, served, lookup if policy.keep else b"")

    async def _hit(self, journey: Journey, chat: ChatRequest, entry: cache.Entry) -> Reply:
        journey.cache = "hit"
        journey.degraded = entry.degraded
        journey.confidence = entry.confidence
        journey.reasons.append("exact cache hit")
        prompt, completion = entry.answer.prompt_tokens, entry.answer.completion_tokens
        journey.answered(entry.served, 0, prompt, completion)
        journey.charge_cache(entry.served, prompt, completion)
        await settle(journey, self._recorder, "ok", 200)
        return _finished(journey, chat, entry.rendered)

    async def _whole(self, journey: Journey, miss: _Miss) -> Reply:
        cascade = await self._cascade(journey, miss)
        final = await cascade.run(wants_stream=False)
        assert not isinstance(final, Live)
        return await self._deliver(journey, miss, final.served, final.answer, final.cacheable)

    async def _stream(self, journey: Journey, miss: _Miss) -> Reply | Events:
        cascade = await self._cascade(journey, miss)
        final = await cascade.run(wants_stream=True)
        if not isinstance(final, Live):
            return await self._deliver(journey, miss, final.served, final.answer, final.cacheable)
        journey.served, journey.tier = final.served, final.served.tier

        async def finish(status: Settlement, http_status: int, error: str | None) -> None:
            await self._finish(settle(journey, self._recorder, status, http_status, error))

        def keep(rendered: Rendered, answer: Answer, served: Served) -> None:
            self._keep(journey, miss, rendered, answer, served)

        events = relay(final, cascade, journey, _stamp(journey), miss.chat, finish, keep)
        return Events(events, journey.headers(final=False))

    async def _cascade(self, journey: Journey, miss: _Miss) -> Cascade:
        routing = self.settings.routing
        planned = await plan(miss.chat, miss.endpoint, miss.served, routing, self._patterns)
        return Cascade(planned, journey, routing.confidence_threshold, self._patience, self._jitter)

    async def _deliver(
        self, journey: Journey, miss: _Miss, served: Served, answer: Answer, cacheable: bool
    ) -> Reply:
        rendered = render(answer, served.label, bool(miss.chat.logprobs))
        journey.answered(served, served.tier, answer.prompt_tokens, answer.completion_tokens)
        await settle(journey, self._recorder, "ok", 200)
        if cacheable:
            self._keep(journey, miss, rendered, answer, served)
        return _finished(journey, miss.chat, rendered)

    def _keep(
        self, journey: Journey, miss: _Miss, rendered: Rendered, answer: Answer, served: Served
    ) -> None:
        if miss.key:
            self._cache.put(
                miss.key,
                cache.Entry(rendered, answer, served, journey.confidence, journey.degraded),
            )

    async def _guarded(self, journey: Journey, work: Coroutine[Any, Any, _T]) -> _T:
        """Settle whatever ends without an answer, then let the error go on to the client."""
        try:
            return await work
        except ApiError as error:
            await self._refuse(journey, error)
            raise
        except asyncio.CancelledError:
            gone = ApiError(CLIENT_CLOSED, "client_closed", "the client left before the answer")
            await self._refuse(journey, gone)
            raise
        except Exception as error:
            _log.exception("request %s failed by a defect of the gateway", journey.request_id)
            problem = ApiError(500, "internal_error", "the gateway failed; the log says why")
            await self._refuse(journey, problem)
            raise problem from error

    async def _refuse(self, journey: Journey, error: ApiError) -> None:
        error.headers = journey.headers() | error.headers
        if journey.handed_over:
            return
        status: Settlement = "refused" if error.status < CLIENT_CLOSED else "error"
        with contextlib.suppress(ApiError):
            await self._finish(settle(journey, self._recorder, status, error.status, error.message))

    async def _finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` to its end even if the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Wait for the work that departed clients left behind, before the writer is closed."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def key(self, authorization: str | None) -> ApiKey:
        """Who is asking. Raises `ApiError` 401."""
        return await self._keys.check(authorization)

    async def explain(self, authorization: str | None, request_id: str) -> dict[str, Any]:
        """A request of the caller's own team and its charges. Raises `ApiError` 401, 404."""
        key = await self._keys.check(authorization)
        found = await asyncio.to_thread(self._ledger.request, request_id)
        if found is None or found[0].team != key.team:
            raise ApiError(
                404, "request_not_found", f"your team has no request '{request_id[:80]}'"
            )
        return explain(*found).as_dict()

    async def ready(self) -> readiness.Readiness:
        """Whether the ledger and the models answer."""
        return await readiness.check(partial(self._ledger.request, "readiness"), self.serving)


@dataclass(frozen=True, slots=True)
class _Miss:
    """A permitted request that the cache could not answer."""

    chat: ChatRequest
    endpoint: Endpoint
    served: Mapping[int, Served]
    key: bytes
    """Where its answer is kept; empty when it is not."""


def _stamp(journey: Journey) -> Stamp:
    return Stamp(journey.request_id, int(journey.created_at.timestamp()))


def _finished(journey: Journey, chat: ChatRequest, rendered: Rendered) -> Reply:
    stamp = _stamp(journey)
    if chat.stream:
        body = rendered.replay(stamp, journey.figures(), chat.include_usage)
        return Reply(body, journey.headers(), EVENTS)
    return Reply(rendered.completion(stamp), journey.headers())
