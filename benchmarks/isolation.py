"""How much production feels a flood on an internal endpoint of the same engine.

    python -m benchmarks.isolation --rounds 5 --seconds 15

Two clients ask a production endpoint, alone and beside a flood of sixteen on an internal one, in
turn, with `gateway.beside_production` as it comes, and, as the reference, once with so many allowed
that nothing is held back. The last line is one JSON object; latencies are those of production.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from benchmarks.drills import say
from benchmarks.small_line import small_line

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


async def measure(
    url: str, keys: tuple[str, str], seconds: float, flood: bool
) -> tuple[list[float], dict[str, Any]]:
    """Production's latencies in ms, and what became of everybody's requests."""
    begun = time.monotonic()
    until = begun + RAMP_S + seconds
    production: list[tuple[float, float]] = []
    lab: list[tuple[float, float]] = []
    jobs = [clients(url, keys[0], "helpdesk", PRODUCTION, until, production)]
    if flood:
        jobs.append(clients(url, keys[1], "lab", FLOOD, until, lab))
    statuses = await asyncio.gather(*jobs)
    times = [1000 * took for asked, took in production if asked >= begun + RAMP_S]
    return times, {
        "production_refused": sum(count for code, count in statuses[0].items() if code != 200),
        "lab_answered": len(lab),
        "lab_refused": sum(count for code, count in statuses[-1].items() if code == 429) * flood,
    }


def p95(times: Sequence[float]) -> float:
    """The 95th percentile."""
    return float(np.quantile(times, 0.95))


def pooled(
    beside: Sequence[Sequence[float]], alone: Sequence[Sequence[float]], draws: int = 2000
) -> tuple[float, float, float]:
    """p95 beside the flood over p95 alone, all rounds together, and its 95 % interval.

    The interval draws rounds, then requests within them, again: rounds differ more than requests.
    """
    random = np.random.default_rng(0)

    def drawn(rounds: Sequence[Sequence[float]], chosen: Iterable[int]) -> float:
        return p95(np.concatenate([random.choice(rounds[one], len(rounds[one])) for one in chosen]))

    found = []
    for _ in range(draws):
        chosen = random.integers(0, len(beside), len(beside))
        found.append(drawn(beside, chosen) / drawn(alone, chosen))
    low, high = np.quantile(found, (0.025, 0.975))
    return p95(np.concatenate(beside)) / p95(np.concatenate(alone)), float(low), float(high)


def main(
    seconds: Annotated[float, typer.Option(min=5, help="Seconds of each measurement.")] = 15.0,
    rounds: Annotated[int, typer.Option(min=1, help="Times alone and beside the flood.")] = 5,
) -> None:
    """Measure production beside a flood. Example: python -m benchmarks.isolation --rounds 5"""
    seen: dict[str, list[list[float]]] = {"alone": [], "flood": [], "unbounded": []}
    counted: dict[str, Counter[str]] = {name: Counter() for name in seen}
    endpoints = {"helpdesk": {"class": "production"}, "lab": {"class": "internal"}}
    with small_line(endpoints, gateway={"beside_production": 1}) as line:

        def look(what: str, flood: bool) -> None:
            keys = (line.keys["helpdesk"], line.keys["lab"])
            times, counts = asyncio.run(measure(line.url, keys, seconds, flood))
            seen[what].append(times)
            counted[what].update(counts)
            say(f"{what}: p95 {p95(times):.0f} ms of {len(times)}, {counts}")

        for turn in range(rounds):
            # Each is first every other time, so that a machine that drifts favours neither.
            for what, flood in (("alone", False), ("flood", True))[:: 1 if turn % 2 == 0 else -1]:
                look(what, flood)
        line.write(gateway={"beside_production": UNBOUNDED})
        line.url = line.factory.deploy().url
        look("unbounded", True)
    # Neighbours in time are compared: the median over the rounds.
    ratios = [
        p95(flood) / p95(alone) for flood, alone in zip(seen["flood"], seen["alone"], strict=True)
    ]
    middle, low, high = pooled(seen["flood"], seen["alone"])
    unbounded = p95(seen["unbounded"][0]) / p95(np.concatenate(seen["alone"]))
    figures = {
        name: {
            "p50_ms": round(float(np.quantile(np.concatenate(seen[name]), 0.5)), 1),
            "p95_ms": round(p95(np.concatenate(seen[name])), 1),
            "p95_by_round_ms": [round(p95(times), 1) for times in seen[name]],
            "requests": sum(map(len, seen[name])),
            **counted[name],
        }
        for name in seen
    }
    print(
        json.dumps(
            {
                "p95_ratio": round(float(np.median(ratios)), 3),
                "p95_ratio_by_round": [round(one, 3) for one in ratios],
                "p95_ratio_pooled": round(middle, 3),
                "p95_ratio_pooled_interval": [round(low, 3), round(high, 3)],
                "p95_ratio_unbounded": round(unbounded, 3),
                **figures,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
