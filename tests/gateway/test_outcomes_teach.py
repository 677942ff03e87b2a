"""From traffic to a router in force: requests, outcomes, `routing fit | calibrate | report`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from conftest import CONFIG, made
from provider_server import Play
from typer.testing import CliRunner

from factory.cli import app
from factory.embedding.static import StaticEmbedder

EASY = ("Which module parses {}?", "Where is the documentation of {}?", "What does {} return?")
HARD = ("Derive the asymptotic bound of {}", "Prove the lemma about {}", "Integrate {} by parts")
THINGS = ("json", "csv", "paths", "sockets", "dates", "queues", "threads", "zip files", "logging")
REQUESTS = 220


def question(number: int) -> tuple[str, bool]:
    """A question that nobody asked before, and whether the small model can do it."""
    hard = number % 3 == 0
    forms = HARD if hard else EASY
    return f"{forms[number % 7 % 3].format(THINGS[number % 9])} ({number})", not hard


def routing(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["routing", *words, "--endpoint", "ladder", "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_outcomes_of_real_traffic_become_a_router_in_force(
    folder: Path, static_dir: Path, monkeypatch
) -> None:
    embedder = StaticEmbedder.load(static_dir)
    config = CONFIG.replace('hard_patterns: ["(?i)prove that"]', "hard_patterns: []")
    config = config.replace("teams:", f"database: sqlite:///{folder / 'ledger.db'}\nteams:", 1)
    file = folder / "factory.yaml"
    file.write_text(config, "utf-8")
    monkeypatch.setenv("FACTORY_CONFIG", str(file))
    monkeypatch.setattr("factory.cli.routing._embedder", lambda *_: embedder)

    async with made(folder, config, embedder) as world:
        for number in range(REQUESTS):
            text, easy = question(number)
            # The small model is unsure of most of what it cannot do, but not of all of it.
            unsure = not easy and number % 4 != 1
            world.small.script.append(Play(logprob=-2.0 if unsure else -0.02))
            answer = await world.ask(text)
            assert answer.headers["x-factory-tier"] == ("3" if unsure else "1")
            said = {
                "request_id": answer.headers["x-factory-request-id"],
                "success": easy or unsure,
            }
            assert (await world.http.post("/v1/outcomes", json=said)).status_code == 200

    fitted = await asyncio.to_thread(routing, "fit")
    assert fitted["n"] + fitted["held_out"] <= REQUESTS
    assert fitted["held_out"] >= 40
    report = await asyncio.to_thread(routing, "report")
    assert report["random"]["apgr"] < 0.6 < report["router"]["apgr"] <= report["oracle"]["apgr"]
    assert report["best_single"] == "strong"
    found = await asyncio.to_thread(routing, "calibrate", "--cost-usd-per-1k", "1.5")
    assert found["value"] is not None
    assert found["bound"] <= 1_500_000

    async with made(folder, config, embedder) as world:
        world.gateway._learning.read()
        spared = await world.ask(question(REQUESTS + 6)[0])
        assert spared.headers["x-factory-tier"] == "1"
        assert "learned: chance" in spared.headers["x-factory-route-reason"]
        small = len(world.small.bodies)
        steep = await world.ask(question(REQUESTS + 5)[0])
        assert steep.headers["x-factory-tier"] == "3"
        assert len(world.small.bodies) == small, "the cheap attempt is spared"
