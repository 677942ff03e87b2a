"""The semantic cache and a learned router in a request's way, with the real static embedder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, made
from provider_server import Play

from factory.catalog.objects import ObjectStore
from factory.embedding.static import StaticEmbedder
from factory.gateway.semantic.calibrate import Calibration as Found
from factory.gateway.semantic.thresholds import save as save_threshold
from factory.ledger.calibrations import Calibration, save
from factory.ledger.samples import load
from factory.ledger.store import open_ledger
from factory.routing import fitted
from factory.routing.labels import Table
from factory.routing.threshold import Target, Threshold

NOW = datetime.now(UTC)
SEMANTIC = CONFIG.replace(
    "cheap: {team: support, tiers: [0, 1]}",
    "cheap: {team: support, tiers: [0, 1], semantic_cache: true}",
)
ASKED = "How do I delete a file in Python?"
SAME = "How can I remove a file in Python?"
OTHERS = ("How do I not delete a file in Python?", "How do I delete 2 files in Python?")


@pytest.fixture(scope="module")
def embedder(static_dir: Path) -> StaticEmbedder:
    return StaticEmbedder.load(static_dir)


def calibrated(folder: Path, embedder: StaticEmbedder, threshold: float) -> None:
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}")
    found = Found(
        threshold=threshold,
        bound=0.009,
        max_false_hits=0.01,
        confidence=0.95,
        n=400,
        n_different=330,
        false_hits=0,
        hits=42,
        hit_rate=0.6,
        reasons=("made for a test",),
    )
    save_threshold(ledger, "support/cheap", embedder.hash, found, NOW)
    ledger.close()


async def test_a_question_in_other_words_is_a_hit_once_calibrated(folder, embedder):
    async with made(folder, SEMANTIC, embedder) as world:
        await world.ask(ASKED, model="cheap")
        assert (await world.ask(SAME, model="cheap")).headers["x-factory-cache"] == "miss"
    calibrated(folder, embedder, 0.5)
    async with made(folder, SEMANTIC, embedder) as world:
        first = await world.ask(ASKED, model="cheap", seed=1)
        again = await world.ask(SAME, model="cheap", seed=1)
        assert again.headers["x-factory-cache"] == "semantic"
        assert "semantic hit: score" in again.headers["x-factory-route-reason"]
        assert again.json()["choices"] == first.json()["choices"]
        assert world.recorded(again)[0].cost_nusd == 0
        for other in OTHERS:
            assert (await world.ask(other, model="cheap", seed=1)).headers[
                "x-factory-cache"
            ] == "miss"
        # Everything but the last question must be equal.
        assert (await world.ask(SAME, model="cheap", seed=2)).headers["x-factory-cache"] == "miss"
    async with made(folder, SEMANTIC, embedder) as world:
        late = await world.ask(SAME + " ", model="cheap", seed=1)
        assert late.headers["x-factory-cache"] == "semantic"
        assert not world.small.bodies
    async with made(folder, SEMANTIC, embedder, version="2") as world:
        promoted = await world.ask(SAME, model="cheap", seed=1)
        assert promoted.headers["x-factory-cache"] == "miss"


async def test_a_calibrated_router_sends_hard_prompts_straight_up(folder, embedder):
    rng = np.random.default_rng(0)
    easy = [f"Which module parses {word}?" for word in ["json", "csv", "xml", "toml"]]
    hard = [f"Prove the theorem of {word} rigorously" for word in ["Gauss", "Euler", "Noether"]]
    prompts = [rng.choice(easy) + f" ({n})" for n in range(90)]
    prompts += [rng.choice(hard) + f" ({n})" for n in range(90)]
    good = np.array([[1, 1]] * 90 + [[0, 1]] * 90, np.float32)
    table = Table(tiers=(1, 3), good=good, prompts=tuple(prompts))
    router, held = fitted.train(table, embedder, 0, lambda _: None)
    store = ObjectStore(folder / ".factory" / "objects")
    stored = fitted.keep(store, "ladder", router, held, {"source": "test"})
    threshold = Threshold(
        value=0.5,
        target=Target("quality", 0.9),
        confidence=0.95,
        bound=0.91,
        achieved=0.95,
        cheap_share=0.5,
        n=54,
        needed=None,
        reasons=("made for a test",),
    )
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}")
    save(
        ledger,
        Calibration(
            kind="router",
            scope="ladder",
            subject="1=small@1; 3=premium@frontier",
            detail={"router": stored.hash, "threshold": threshold.detail()},
            created_at=NOW,
        ),
    )
    ledger.close()
    config = CONFIG.replace('hard_patterns: ["(?i)prove that"]', "hard_patterns: []")
    async with made(folder, config, embedder) as world:
        world.gateway._learning.read()
        simple = await world.ask("Which module parses json?", model="ladder")
        assert simple.headers["x-factory-tier"] == "1"
        steep = await world.ask("Prove the theorem of Gauss rigorously", model="ladder")
        assert steep.headers["x-factory-tier"] == "3"
        assert "learned: chance" in steep.headers["x-factory-route-reason"]
        assert len(world.small.bodies) == 1
    async with made(folder, config, embedder, version="2") as world:
        world.gateway._learning.read()
        # Calibrated for other weights: the rules hold again.
        world.small.default = Play()
        steep = await world.ask("Prove the theorem of Euler rigorously", model="ladder")
        assert steep.headers["x-factory-tier"] == "1"
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}")
    kept = list(load(ledger, "ladder", None, 10))
    ledger.close()
    assert len(kept) == 3
    assert {attempt.tier for row in kept for attempt in row.attempts} == {1, 3}
