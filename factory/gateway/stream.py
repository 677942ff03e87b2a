"""Server-sent events over ASGI: begin a stream, pass it on, notice when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi import Response
from starlette.types import Receive, Scope, Send

from factory.gateway.errors import ApiError
from factory.gateway.replies import EVENTS, JSON, Opening, Reply


def error_response(error: ApiError) -> Response:
    """The error as an HTTP response in OpenAI's shape."""
    return Response(error.body(), error.status, headers=error.headers, media_type=JSON)


class EventStream(Response):
    """The response to a streaming request.

    The status and headers are sent only when the first token is there, so that an error before
    it is a plain HTTP error. When the client leaves, also before that, the work is cancelled.
    """

    def __init__(self, opening: Opening) -> None:
        super().__init__(media_type=EVENTS)
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, until its end or until the client leaves."""
        work = asyncio.ensure_future(self._respond(scope, receive, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            leaving.cancel()
            work.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = await self._opening()
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if isinstance(reply, Reply):
            whole = Response(reply.body, headers=dict(reply.headers), media_type=reply.media_type)
            await whole(scope, receive, send)
            return
        try:
            event = await anext(reply.events, b"")
            await send(_start(reply.headers))
            await send({"type": "http.response.body", "body": event, "more_body": True})
            async for event in reply.events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            # It has begun, so closing it runs its settlement.
            await reply.events.aclose()


def _start(headers: Mapping[str, str]) -> dict[str, object]:
    fields = {"content-type": f"{EVENTS}; charset=utf-8", "cache-control": "no-store", **headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
