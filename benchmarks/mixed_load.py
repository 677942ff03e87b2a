"""A steady mix of requests whose every answer is checked: streams and not, new questions and old.

    load = MixedLoad(url, keys, clients=6)
    async with asyncio.TaskGroup() as group: group.create_task(load.run(until))
    load.finished[0].ok, load.finished[0].request_ids

A client tries again, as OpenAI's libraries do, until an answer is complete or its budget of time is
over. Complete means: a finish reason, usage, the end mark of a stream, and, for a question that was
answered before from the cache, the same words.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

BUDGET_S = 90.0
"""Seconds in which a request must succeed, its repetitions included."""

ATTEMPT_S = 60.0
"""Seconds after which a client gives up one attempt."""

PAUSE_S = 0.15
"""Seconds that a client thinks between two requests."""

OLD_SHARE = 0.4
"""Share of questions that were asked before."""

REFUSED = ("budget_exceeded", "insufficient_quota")
"""Error codes that say that there is no money, which asking again does not change."""


@dataclass(slots=True)
class Finished:
    """One request as its client saw it."""

    ok: bool
    """A complete answer came."""
    refused: bool = False
    """There was no money for it."""
    wrong: str = ""
    """An answer with status 200 that is not whole or not the right one."""
    attempts: int = 0
    seconds: float = 0.0
    answered: list[tuple[str, str | None]] = field(default_factory=list)
    """Request id and cost header of every attempt with status 200."""


class Wrong(Exception):
    """Status 200 and yet not an answer."""


class MixedLoad:
    """Clients that ask for as long as they are told to."""

    def __init__(self, url: str, keys: Sequence[str], clients: int, seed: int = 0) -> None:
        """`keys` are used in turns by the clients."""
        self._url = url
        self._keys = keys
        self._clients = clients
        self._random = Random(seed)
        self._old: list[str] = []
        self._said: dict[str, set[str]] = {}
        self._doubtful: set[str] = set()
        self._asked = 0
        self.finished: list[Finished] = []
        self.seen: Counter[str] = Counter()
        """What attempts came back with."""

    async def run(self, until: float) -> None:
        """Ask until `time.monotonic()` reaches `until`, and finish what is under way."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(self._keys[number % len(self._keys)], until))

    async def _client(self, key: str, until: float) -> None:
        while time.monotonic() < until:
            self.finished.append(await self._request(key))
            await asyncio.sleep(PAUSE_S)

    async def _request(self, key: str) -> Finished:
        self._asked += 1
        if self._old and self._random.random() < OLD_SHARE:
            question = self._random.choice(self._old)
        else:
            question = f"Case {self._asked}: which module copies files?"
        body = {
            "model": self._random.choice(("helpdesk", "notes")),
            "max_tokens": 8,
            "temperature": 0,
            "messages": [{"role": "user", "content": question}],
            "stream": self._random.random() < 0.5,
        }
        found = Finished(ok=False)
        begun = time.monotonic()
        while time.monotonic() - begun < BUDGET_S:
            found.attempts += 1
            try:
                wait = await self._attempt(key, body, found)
            except Wrong as wrong:
                found.wrong = str(wrong)
                break
            if found.ok or found.refused:
                break
            # Its answer may have been kept without having arrived.
            self._doubtful.add(_mark(body))
            await asyncio.sleep(wait)
        found.seconds = time.monotonic() - begun
        return found

    async def _attempt(self, key: str, body: dict[str, Any], found: Finished) -> float:
        """One try; returns the seconds to wait before the next, noting in `found` how it went."""
        headers = {"Authorization": f"Bearer {key}"}
        try:
            # A connection of its own: a gateway that has died must not be asked again.
            async with (
                httpx.AsyncClient(base_url=self._url, timeout=ATTEMPT_S) as client,
                client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply,
            ):
                raw = (await reply.aread()).decode()
        except httpx.HTTPError as error:
            self.seen[f"no answer ({type(error).__name__})"] += 1
            return 0.5
        if reply.status_code != 200:
            code = str(_json(raw).get("error", {}).get("code"))
            self.seen[f"{reply.status_code} {code}"] += 1
            found.refused = code in REFUSED
            return float(reply.headers.get("Retry-After", 0.5))
        cost = None if body["stream"] else reply.headers.get("x-factory-cost-usd")
        found.answered.append((reply.headers["x-factory-request-id"], cost))
        text = _streamed(raw) if body["stream"] else _whole(raw)
        if text is None:
            self.seen["200, then an error in the stream"] += 1
            return 0.5
        tier = reply.headers.get("x-factory-tier", "?")
        self.seen[f"200 tier {tier}"] += 1
        self._compare(body, reply.headers.get("x-factory-cache", ""), text)
        found.ok = True
        return 0.0

    def _compare(self, body: dict[str, Any], cache: str, text: str) -> None:
        mark = _mark(body)
        said = self._said.setdefault(mark, set())
        if cache == "hit" and said and text not in said and mark not in self._doubtful:
            raise Wrong(f"a hit says {text!r} where {sorted(said)} was said before")
        said.add(text)
        self._old.append(body["messages"][0]["content"])


def _mark(body: dict[str, Any]) -> str:
    return f"{body['model']}: {body['messages'][0]['content']}"


def _json(raw: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _whole(raw: str) -> str:
    reply = _json(raw)
    try:
        choice = reply["choices"][0]
        complete = choice["finish_reason"] and reply["usage"]["completion_tokens"] > 0
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise Wrong(f"status 200 without an answer: {raw[:200]}") from error
    if not complete or not text:
        raise Wrong(f"status 200 with half an answer: {raw[:200]}")
    return str(text)


def _streamed(raw: str) -> str | None:
    """The text of a stream; None when it says itself that it broke off."""
    lines = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
    chunks = [_json(line) for line in lines if line != "[DONE]"]
    if any("error" in chunk for chunk in chunks):
        return None
    if not lines or lines[-1] != "[DONE]":
        raise Wrong(f"a stream that ends without its mark: {raw[-200:]}")
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    if not any(choice.get("finish_reason") for choice in choices):
        raise Wrong(f"a stream without a finish reason: {raw[-200:]}")
    return "".join(choice["delta"].get("content") or "" for choice in choices)
