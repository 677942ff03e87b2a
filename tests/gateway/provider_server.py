"""A provider that speaks OpenAI's HTTP protocol and fails on command.

provider = Provider(); base_url = await provider.start()
provider.script.append(Play(status=500))     # the next call; afterwards `provider.default`
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

PREMIUM_KEY = "sk-premium-secret-0123456789"


@dataclass
class Play:
    """How one call goes."""

    words: tuple[str, ...] = ("json", " it", " is")
    logprob: float = -0.01
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "scripted failure"
    garbage: bool = False
    cut_after: int | None = None
    """Break the connection after so many words."""
    error_after: int | None = None
    """Send an error event after so many words."""
    wait_before: asyncio.Event | None = None
    """Hold the whole answer until set."""
    wait_after: tuple[int, asyncio.Event] | None = None
    """Hold the stream after so many words until set."""
    usage: bool = True


class Listening:
    """A uvicorn server in this event loop; its socket accepts before `serve` has begun."""

    def __init__(self, app: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_level="critical", lifespan="off", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._task


class Provider:
    """The scriptable provider."""

    def __init__(self, **default: Any) -> None:
        self.default = Play(**default)
        self.script: deque[Play] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.abandoned = asyncio.Event()
        """Set when a client left a stream before its end."""
        self._listening = Listening(self._app())
        self.base_url = f"{self._listening.url}/v1"

    async def stop(self) -> None:
        await self._listening.stop()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": []}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            self.keys.append(request.headers["authorization"])
            play = self.script.popleft() if self.script else self.default
            if play.wait_before:
                await play.wait_before.wait()
            if play.status != 200:
                error = {"message": play.message, "type": "server_error", "code": None}
                return JSONResponse({"error": error}, play.status, play.headers)
            if play.garbage:
                if body.get("stream"):
                    return Response("data: {not json\n\n", media_type="text/event-stream")
                return Response("<html>hello</html>", media_type="text/html")
            if body.get("stream"):
                return StreamingResponse(self._events(play, body), media_type="text/event-stream")
            return JSONResponse(_completion(play, body))

        return app

    async def _events(self, play: Play, body: dict[str, Any]) -> AsyncIterator[str]:
        ended = False
        try:
            yield _event(_chunk({"role": "assistant", "content": ""}, None, None))
            for count, word in enumerate(play.words):
                if play.cut_after == count:
                    ended = True
                    raise RuntimeError("the connection is cut on purpose")
                if play.error_after == count:
                    ended = True
                    yield 'data: {"error": {"message": "overloaded", "type": "server_error"}}\n\n'
                    return
                if play.wait_after and play.wait_after[0] == count:
                    await play.wait_after[1].wait()
                logprobs = _logprobs(play, (word,)) if body.get("logprobs") else None
                yield _event(_chunk({"content": word}, logprobs, None))
            yield _event(_chunk({}, None, "stop"))
            if play.usage:
                yield _event({**_chunk({}, None, None), "choices": [], "usage": _usage(play)})
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.abandoned.set()


def _usage(play: Play) -> dict[str, int]:
    words = len(play.words)
    return {"prompt_tokens": 10, "completion_tokens": words, "total_tokens": 10 + words}


def _logprobs(play: Play, words: tuple[str, ...]) -> dict[str, Any]:
    entries = [
        {"token": w, "logprob": play.logprob, "bytes": list(w.encode()), "top_logprobs": []}
        for w in words
    ]
    return {"content": entries, "refusal": None}


def _completion(play: Play, body: dict[str, Any]) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(play.words)},
        "logprobs": _logprobs(play, play.words) if body.get("logprobs") else None,
        "finish_reason": "stop",
    }
    completion = {
        "id": "upstream",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
    }
    return {**completion, "usage": _usage(play)} if play.usage else completion


def _chunk(delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return {
        "id": "upstream",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "upstream",
        "choices": [choice],
    }


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
