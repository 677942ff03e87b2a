"""How long requests wait while a production engine is replaced by its next version.

    python -m benchmarks.rollover --clients 2

Clients ask a production endpoint without pause: undisturbed, while a deployment replaces its only
replica with room for both versions, and, as the reference, while there is none, so that the old one
must go first. The last line is one JSON object; `longest_s` is the longest that a request took.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from benchmarks.attached import attached
from benchmarks.drills import say
from benchmarks.small_line import small_line
from serve_apps.rollover import GATEWAY_CPUS

TOKENS = 8
CALM_S = 10.0
"""Seconds of the undisturbed measurement."""
LENGTHS = (1024, 1000, 900)
"""`max_model_len` of each version: another one needs a new replica."""


class Clients:
    """Asks until it is stopped; knows how long each answer took."""

    def __init__(self, url: str, key: str, number: int) -> None:
        self._url, self._key, self._number = url, key, number
        self._going = True
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self.took: list[float] = []
        self.failed = 0
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """The figures, once the last answers are there."""
        self._going = False
        self._thread.join()
        return {
            "requests": len(self.took) + self.failed,
            "failed": self.failed,
            "p50_s": round(float(np.quantile(self.took, 0.5)), 3),
            "p95_s": round(float(np.quantile(self.took, 0.95)), 3),
            "longest_s": round(max(self.took), 3),
        }

    async def _all(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=120) as client:
            await asyncio.gather(*(self._ask(client) for _ in range(self._number)))

    async def _ask(self, client: httpx.AsyncClient) -> None:
        while self._going:
            text = f"{time.time_ns()}: tell me about the sea."
            body = {
                "model": "helpdesk",
                "max_tokens": TOKENS,
                "messages": [{"role": "user", "content": text}],
            }
            begun = time.monotonic()
            try:
                reply = await client.post("/v1/chat/completions", json=body)
                answered = reply.status_code == 200
            except httpx.HTTPError:
                answered = False
            if answered:
                self.took.append(time.monotonic() - begun)
            else:
                self.failed += 1
                await asyncio.sleep(0.1)


def during(url: str, key: str, number: int, act: Callable[[], Any]) -> dict[str, Any]:
    """What clients see while `act` runs, and how long that takes."""
    clients = Clients(url, key, number)
    begun = time.monotonic()
    try:
        act()
    finally:
        took = time.monotonic() - begun
        found = clients.stop()
    return found | {"deploy_s": round(took, 1)}


def main(
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask without pause.")] = 2,
) -> None:
    """Measure a roll-over under load. Example: python -m benchmarks.rollover --clients 2"""
    found: dict[str, Any] = {}
    endpoints = {"helpdesk": {"class": "production"}}
    with small_line(endpoints, model={"max_model_len": LENGTHS[0]}) as line:
        ask = partial(during, line.url, line.keys["helpdesk"], clients)

        def replace(length: int) -> Callable[[], Any]:
            line.write(model={"max_model_len": length})
            return line.factory.deploy

        found["calm"] = ask(lambda: time.sleep(CALM_S))
        say(f"undisturbed: {found['calm']}")
        found["beside"] = ask(replace(LENGTHS[1]))
        say(f"with room for both: {found['beside']}")
        with attached(line.factory, line.file):
            import ray

            free = ray.available_resources().get("CPU", 0.0)
            taken = ray.remote(num_cpus=free - GATEWAY_CPUS)(threading.Event).remote()
            ray.get(taken.is_set.remote())
            found["in_place"] = ask(replace(LENGTHS[2]))
        say(f"without room: {found['in_place']}")
    print(
        json.dumps(
            {
                "longest_s": found["beside"]["longest_s"],
                "longest_in_place_s": found["in_place"]["longest_s"],
                "failed": found["beside"]["failed"],
                **found,
                "clients": clients,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
