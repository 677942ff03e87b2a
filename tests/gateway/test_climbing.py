"""What decides where a request starts and whether it climbs: samples, experience, breakers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from conftest import CONFIG, World, made
from provider_server import Play

from factory.ledger.calibrations import Calibration, save
from factory.routing.threshold import Target, Threshold

SAMPLED = CONFIG.replace(
    "ladder: {team: support, tiers: [0, 1, 3]}",
    "ladder: {team: support, tiers: [0, 1, 3], self_consistency: 3}",
)


async def test_sampled_answers_that_agree_are_sent(folder):
    async with made(folder, SAMPLED) as world:
        reply = await world.ask(model="ladder")
        assert reply.headers["x-factory-tier"] == "1"
        assert len(reply.json()["choices"]) == 1
        assert world.small.bodies[0]["n"] == 3
        assert world.small.bodies[0]["temperature"] >= 0.7
        request, (charge,) = world.recorded(reply)
        assert "agreement" in charge.reason
        assert charge.completion_tokens == 9
        assert request.confidence == 1.0


async def test_a_streamed_request_is_sampled_too(folder):
    async with made(folder, SAMPLED) as world:
        reply = await world.ask(model="ladder", stream=True)
        assert reply.text.count('"content":"json it is"') == 1
        assert world.small.bodies[0]["n"] == 3


@pytest.mark.parametrize(("tier", "answered_by"), [(1, "3"), (2, "1")])
async def test_a_calibrated_threshold_holds_for_the_tier_it_was_found_on(
    world: World, tier: int, answered_by: str
):
    found = Threshold(
        value=0.995,
        target=Target("quality", 0.9),
        confidence=0.95,
        bound=0.9,
        achieved=0.95,
        cheap_share=0.5,
        n=100,
        needed=None,
        reasons=(),
    )
    served = world.serving["ladder"]
    save(
        world.ledger,
        Calibration(
            kind="confidence",
            scope="ladder",
            subject="; ".join(f"{one}={at.model}@{at.version}" for one, at in served.items()),
            detail={"tier": tier, "threshold": found.detail()},
            created_at=datetime.now(UTC),
        ),
    )
    world.gateway._learning.read()
    world.small.default = Play(logprob=-0.1)
    reply = await world.ask()
    assert reply.headers["x-factory-tier"] == answered_by


async def test_a_model_that_keeps_failing_is_left_alone_then_tried_again(folder):
    config = CONFIG.replace("routing: {", "routing: {breaker: {failures: 2, cooldown_s: 0.2}, ")
    async with made(folder, config) as world:
        world.small.default = Play(status=503)
        for number in range(3):
            assert (await world.ask(f"question {number}", model="cheap")).status_code == 503
        asked = len(world.small.bodies)
        # One attempt and its retry opened the circuit; nobody was asked after that.
        assert asked == 2
        refused = await world.ask("another", model="cheap")
        assert "circuit open" in refused.json()["error"]["message"]
        stood_in = await world.ask("one more", model="ladder")
        assert stood_in.headers["x-factory-tier"] == "3"
        assert len(world.small.bodies) == asked
        world.small.default = Play()
        async with asyncio.timeout(5):
            while (await world.ask("again", model="cheap")).status_code != 200:
                await asyncio.sleep(0.02)
        assert (await world.ask("and again", model="cheap")).status_code == 200


async def test_a_cheap_attempt_that_hardly_ever_pays_is_left_out(folder):
    even = CONFIG.replace("{input_usd_per_mtok: 2.5, output_usd_per_mtok: 10}", "*small").replace(
        "price: {input_usd_per_mtok: 0.02", "price: &small {input_usd_per_mtok: 0.02"
    )
    async with made(folder, even) as world:
        world.small.default = Play(logprob=-3.0)
        tiers = []
        for number in range(30):
            reply = await world.ask(f"question {number}", model="ladder")
            assert reply.headers["x-factory-tier"] == "3"
            tiers.append([charge.tier for charge in world.recorded(reply)[1]])
        assert tiers[0] == [1, 3]
        assert tiers[-1] == [3]
        assert "skipped" in reply.headers["x-factory-route-reason"]


async def test_a_revoked_key_stops_working_at_once(world: World):
    from factory.ledger.keys import list_keys, revoke

    headers = world.key()
    assert (await world.ask(model="cheap", headers=headers)).status_code == 200
    revoke(world.ledger, list_keys(world.ledger)[-1].key_id)
    async with asyncio.timeout(1):
        while (await world.ask(model="cheap", headers=headers)).status_code == 200:
            await asyncio.sleep(0.01)
