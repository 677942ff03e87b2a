"""A provider that speaks OpenAI's HTTP protocol and fails on command.

provider = Provider(); base_url = await provider.start()
provider.script.append(Play(status=500))     # the next call; afterwards `provider.default`
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
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
    tool_arguments: tuple[str, ...] = ()
    """Pieces of the arguments with which the request's first tool is called instead."""


Choose = Callable[[Play, dict[str, Any], int], dict[str, Any]]
"""Makes the choice of one index."""


class Listening:
    """A uvicorn server in this event loop; its socket accepts before `serve` has begun."""

    def __init__(self, app: Any) -> None:
        # With the protocol named, asyncio turns Nagle's algorithm off.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(256)
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
            return await self._answer(request, _chat_choice, "chat.completion")

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            return await self._answer(request, _text_choice, "text_completion")

        @app.post("/v1/embeddings")
        async def embeddings(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            play = self.script.popleft() if self.script else self.default
            if play.status != 200:
                return JSONResponse({"error": {"message": play.message}}, play.status)
            if play.garbage:
                return JSONResponse({"data": []})
            rows = [
                {"object": "embedding", "index": index, "embedding": [float(len(text)), 1.0]}
                for index, text in enumerate(body["input"])
            ]
            count = sum(len(text.split()) for text in body["input"])
            usage = {"prompt_tokens": count, "total_tokens": count}
            # A provider may answer in any order; the index counts.
            return JSONResponse({"object": "list", "data": rows[::-1], "usage": usage})

        return app

    async def _answer(self, request: Request, choose: Choose, kind: str) -> Response:
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
            events = self._events(play, body, kind)
            return StreamingResponse(events, media_type="text/event-stream")
        choices = [choose(play, body, index) for index in range(body.get("n", 1))]
        whole = {"id": "upstream", "object": kind, "created": 1, "model": body["model"]}
        usage = {"usage": _usage(play, len(choices))} if play.usage else {}
        return JSONResponse({**whole, "choices": choices, **usage})

    async def _events(self, play: Play, body: dict[str, Any], kind: str) -> AsyncIterator[str]:
        ended = False
        count = body.get("n", 1)
        in_text = kind == "text_completion"

        def event(said: dict[str, Any], index: int, finish: str | None = None) -> str:
            choice = {"index": index, "logprobs": None, "finish_reason": finish, **said}
            return _event(_chunk(kind, [choice]))

        def delta(fields: dict[str, Any]) -> dict[str, Any]:
            return {"text": fields.get("content", "")} if in_text else {"delta": fields}

        try:
            if not in_text:
                for index in range(count):
                    yield event(delta({"role": "assistant", "content": ""}), index)
            for place, word in enumerate(() if play.tool_arguments else play.words):
                if play.cut_after == place:
                    ended = True
                    raise RuntimeError("the connection is cut on purpose")
                if play.error_after == place:
                    ended = True
                    yield 'data: {"error": {"message": "overloaded", "type": "server_error"}}\n\n'
                    return
                if play.wait_after and play.wait_after[0] == place:
                    await play.wait_after[1].wait()
                for index in range(count):
                    said = delta({"content": word})
                    yield event({**said, "logprobs": _logprobs(play, (word,), body)}, index)
            for call in _deltas_of_call(play, body):
                yield event(delta({"tool_calls": [call]}), 0)
            for index in range(count):
                yield event(delta({}), index, "tool_calls" if play.tool_arguments else "stop")
            if play.usage:
                yield _event({**_chunk(kind, []), "usage": _usage(play, count)})
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.abandoned.set()


def _usage(play: Play, choices: int) -> dict[str, int]:
    words = len(play.words) * choices
    return {"prompt_tokens": 10, "completion_tokens": words, "total_tokens": 10 + words}


def _logprobs(play: Play, words: tuple[str, ...], body: dict[str, Any]) -> dict[str, Any] | None:
    asked = body.get("logprobs")
    if "prompt" in body:
        if asked is None:
            return None
        return {
            "tokens": list(words),
            "token_logprobs": [play.logprob] * len(words),
            "top_logprobs": [{w: play.logprob} for w in words] if asked else None,
            "text_offset": [0] * len(words),
        }
    if not asked:
        return None
    entries = [
        {"token": w, "logprob": play.logprob, "bytes": list(w.encode()), "top_logprobs": []}
        for w in words
    ]
    return {"content": entries, "refusal": None}


def _chat_choice(play: Play, body: dict[str, Any], index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(play.words)}
    if play.tool_arguments:
        first, *rest = _deltas_of_call(play, body)
        first["function"]["arguments"] = "".join(one["function"]["arguments"] for one in rest)
        del first["index"]
        message = {"role": "assistant", "content": None, "tool_calls": [first]}
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(play, play.words, body),
        "finish_reason": "tool_calls" if play.tool_arguments else "stop",
    }


def _text_choice(play: Play, body: dict[str, Any], index: int) -> dict[str, Any]:
    return {
        "index": index,
        "text": "".join(play.words),
        "logprobs": _logprobs(play, play.words, body),
        "finish_reason": "stop",
    }


def _deltas_of_call(play: Play, body: dict[str, Any]) -> list[dict[str, Any]]:
    """A call in pieces: its name first, then its arguments."""
    if not play.tool_arguments:
        return []
    name = body["tools"][0]["function"]["name"]
    head = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [{"function": {"arguments": piece}} for piece in play.tool_arguments]
    return [{"index": 0, **one} for one in (head, *pieces)]


def _chunk(kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    name = kind if kind == "text_completion" else f"{kind}.chunk"
    return {
        "id": "upstream",
        "object": name,
        "created": 1,
        "model": "upstream",
        "choices": choices,
    }


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
