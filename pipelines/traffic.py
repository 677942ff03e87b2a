"""Mixed traffic for the demo: easy, hard, repeated, streamed and malformed requests.

    requests = mix(cases, count=300, seed=7)
    replies = await send(requests, url, keys, concurrency=8)

What to send is a pure function of cases, count and seed; sending is an HTTP client around it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from factory.evaluation.suite import Case

Kind = Literal["easy", "repeat", "hard", "stream", "malformed"]

SHARES: Mapping[Kind, float] = {
    "easy": 0.42,
    "repeat": 0.30,
    "stream": 0.12,
    "hard": 0.08,
    "malformed": 0.08,
}
"""Shares of the kinds. Repeats are what a help desk sees: the same few questions again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to send, with what a good answer would be."""

    kind: Kind
    endpoint: str
    content: bytes
    """The body, as it goes over the wire."""
    fault: str = ""
    """What is wrong with a malformed one."""
    key: str | None = None
    """A key to send instead of the endpoint's own; for the fault `invalid key`."""
    expected: str = ""
    want_status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back."""

    request: Request
    status: int
    latency_ms: float
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def correct(self) -> bool:
        """True when the answer is the expected one."""
        return self.status == 200 and self.text.strip().lower() == self.request.expected.lower()


def mix(cases: Sequence[Case], count: int, seed: int) -> list[Request]:
    """`count` requests over the two default endpoints, shuffled; the same for the same seed."""
    rng = random.Random(seed)
    pool = list(cases)
    rng.shuffle(pool)
    counts = {kind: round(share * count) for kind, share in SHARES.items()}
    fresh = iter(pool * (1 + count // max(len(pool), 1)))
    easy = [_ask("easy", next(fresh), _endpoint(rng)) for _ in range(counts["easy"])]
    popular = easy[: max(1, len(easy) // 8)]
    requests = list(easy)
    for _ in range(counts["repeat"]):
        again = rng.choice(popular)
        requests.append(
            Request(
                kind="repeat",
                endpoint=again.endpoint,
                content=again.content,
                expected=again.expected,
            )
        )
    requests += [
        _ask("stream", next(fresh), _endpoint(rng), stream=True) for _ in range(counts["stream"])
    ]
    requests += [_hard(next(fresh), next(fresh)) for _ in range(counts["hard"])]
    faults = [_malformed(index, next(fresh)) for index in range(counts["malformed"])]
    requests += faults
    rng.shuffle(requests)
    return requests


def _endpoint(rng: random.Random) -> str:
    return "helpdesk" if rng.random() < 0.75 else "helpdesk-batch"


def _ask(kind: Kind, case: Case, endpoint: str, *, stream: bool = False) -> Request:
    body = _body(case, endpoint) | ({"stream": True} if stream else {})
    return Request(kind=kind, endpoint=endpoint, content=_encode(body), expected=case.expected)


def _hard(case: Case, other: Case) -> Request:
    """A question behind a long digression: past the router's `hard_prompt_tokens`."""
    body = _body(case, "helpdesk")
    digression = f"Some background that may or may not matter: {other.messages[-1].content} "
    body["messages"][-1]["content"] = digression * 12 + body["messages"][-1]["content"]
    return Request(kind="hard", endpoint="helpdesk", content=_encode(body), expected=case.expected)


def _malformed(index: int, case: Case) -> Request:
    body = _body(case, "helpdesk")
    faults: list[tuple[str, bytes, int, str | None]] = [
        ("invalid JSON", _encode(body)[:-9], 400, None),
        ("no messages", _encode({"model": "helpdesk"}), 400, None),
        ("unknown model", _encode(body | {"model": "gpt-404"}), 404, None),
        ("invalid key", _encode(body), 401, "sk-factory-not-a-key"),
        ("unknown field", _encode(body | {"temprature": 0}), 400, None),
        (
            "longer than the context",
            _encode(body | {"messages": [{"role": "user", "content": "word " * 4000}]}),
            400,
            None,
        ),
    ]
    fault, content, status, key = faults[index % len(faults)]
    # The last one goes where no tier has room for it; helpdesk's tier 3 might.
    endpoint = "helpdesk"
    if fault == "longer than the context":
        endpoint = "helpdesk-batch"
        content = content.replace(b'"model":"helpdesk"', b'"model":"helpdesk-batch"')
    return Request(
        kind="malformed",
        endpoint=endpoint,
        content=content,
        fault=fault,
        key=key,
        want_status=status,
    )


def _body(case: Case, endpoint: str) -> dict[str, Any]:
    return {"model": endpoint, "messages": case.chat, "max_tokens": 8, "temperature": 0}


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


async def send(
    requests: Sequence[Request],
    url: str,
    keys: Mapping[str, str],
    *,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    progress: Callable[[Reply], None] = lambda _: None,
) -> list[Reply]:
    """Send all requests to the gateway at `url`, `concurrency` at a time, in order.

    `keys` is the API key by endpoint. A request that gets no HTTP answer has status 0.
    """
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits) as client:

        async def one(request: Request) -> Reply:
            async with gate:
                reply = await _send_one(client, request, keys[request.endpoint])
            progress(reply)
            return reply

        return list(await asyncio.gather(*(one(request) for request in requests)))


async def _send_one(client: httpx.AsyncClient, request: Request, key: str) -> Reply:
    headers = {
        "authorization": f"Bearer {request.key or key}",
        "content-type": "application/json",
    }
    begun = time.perf_counter()
    received = bytearray()
    status, reply_headers, error = 0, {}, ""
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", content=request.content, headers=headers
        ) as response:
            status, reply_headers = response.status_code, dict(response.headers)
            async for part in response.aiter_bytes():
                received += part
    except httpx.HTTPError as problem:
        error = f"{type(problem).__name__}: {problem}"
    done = time.perf_counter()
    text, fault = _read(bytes(received), streamed=b'"stream":true' in request.content)
    return Reply(
        request=request,
        status=status if not error else 0,
        latency_ms=(done - begun) * 1000,
        text=text,
        headers={k: v for k, v in reply_headers.items() if k.startswith("x-factory-")},
        error=error or fault,
    )


def _read(content: bytes, *, streamed: bool) -> tuple[str, str]:
    """The answer's text and the error's message, from a body or a stream of events."""
    documents: list[Any] = []
    if streamed and content.lstrip().startswith((b"data:", b":")):
        for line in content.decode("utf-8", "replace").splitlines():
            data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
            if data and data != "[DONE]":
                documents.append(json.loads(data))
    else:
        try:
            documents.append(json.loads(content))
        except ValueError:
            return "", content.decode("utf-8", "replace")[:200]
    text, error = "", ""
    for document in documents:
        if "error" in document:
            error = str(document["error"].get("message", ""))
        for choice in document.get("choices", []):
            part = choice.get("delta") or choice.get("message") or {}
            text += part.get("content") or ""
    return text, error
