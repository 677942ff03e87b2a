"""The gateway's handle to an engine on Ray Serve.

engine = RayEngine(handle)             # implements factory.gateway.engine.Engine
RayEngine(handle, "smollm2-135m:helpdesk@1")   # asks a multi-adapter engine for one of them
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from factory.gateway.engine import EngineError, Route

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


class RayEngine:
    """The gateway's side of a `TierEngine`: the `Engine` protocol over a Serve handle."""

    def __init__(self, handle: DeploymentHandle, adapter: str | None = None) -> None:
        """`handle` is the deployment handle that Serve passes to the gateway.

        `adapter` is the one to ask for, by its name in the engine's spec; None asks the model that
        the engine has loaded.
        """
        self._named = {"model": adapter} if adapter else {}
        # `_by_reference=False` is Serve's gRPC from replica to replica: half of what an actor call
        # costs, which would put answers where any actor can have them.
        self._answer = handle.options(method_name="whole", stream=True, _by_reference=False)
        self._stream = handle.options(method_name="stream", stream=True, _by_reference=False)
        self._ping = handle.options(method_name="ping")

    async def answer(self, body: dict[str, Any], route: Route = "chat") -> dict[str, Any]:
        """One completion of the route's kind. Raises `EngineError`."""
        asked = self._answer.remote(body | self._named, route)
        finished = False
        try:
            with translated():
                answer: dict[str, Any] = await anext(asked)
                # To its end, so that the call is over for Serve too.
                await anext(asked, None)
            finished = True
        finally:
            if not finished:
                # Whoever gave up must not leave work behind, nor a place in the queue.
                asked.cancel()
        _raise_for(answer)
        return answer

    async def stream(
        self, body: dict[str, Any], route: Route = "chat"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The route's chunks, the last with usage. Raises `EngineError`."""
        events = self._stream.remote(body | self._named, route)
        finished = False
        try:
            with translated():
                async for event in events:
                    for line in event.splitlines():
                        data = line.removeprefix("data: ").strip()
                        if data and data != "[DONE]":
                            chunk = json.loads(data)
                            _raise_for(chunk)
                            yield chunk
            finished = True
        finally:
            if not finished:
                events.cancel()

    async def check(self) -> None:
        """Return when a replica takes requests. Raises `EngineError`."""
        with translated():
            await self._ping.remote()


@contextmanager
def translated() -> Iterator[None]:
    """Ray's failures as `EngineError`; a call cancelled with its client as a cancellation."""
    from grpc.aio import AioRpcError  # type: ignore[import-untyped]
    from ray.exceptions import RayError, TaskCancelledError
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except TaskCancelledError as error:
        raise asyncio.CancelledError from error
    except (RayError, RayServeException, AioRpcError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        message = f"the engine is not answering: {lines[-1][:300]}"
        raise EngineError(503, message, retryable=True) from error


def _raise_for(answer: dict[str, Any]) -> None:
    if error := answer.get("error"):
        status = int(error.get("code") or 500)
        message = str(error.get("message", "the engine refused the request"))
        raise EngineError(status, message, retryable=status >= 500)
