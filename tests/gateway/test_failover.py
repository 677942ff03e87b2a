"""Engines that fail: retries, stand-ins, labels, 503, and what each of them costs."""

from __future__ import annotations

import asyncio

import pytest
from provider_server import PREMIUM_KEY, Play

from factory.ledger.errors import LedgerUnavailable


def charged(world, response):
    return [(charge.tier, charge.cost_nusd > 0) for charge in world.recorded(response)[1]]


async def test_a_passing_failure_is_retried_once(world):
    world.small.script.append(Play(status=500))
    response = await world.ask()
    assert response.headers["x-factory-tier"] == "1"
    assert response.headers["x-factory-degraded"] == "false"
    assert charged(world, response) == [(1, False), (1, True)]
    assert "asked again" in response.headers["x-factory-route-reason"]


async def test_a_tier_that_stays_down_is_replaced_by_the_next_one_up(world):
    world.small.default.status = 500
    response = await world.ask()
    assert response.headers["x-factory-tier"] == "3"
    assert response.headers["x-factory-degraded"] == "false"
    assert charged(world, response) == [(1, False), (1, False), (3, True)]


async def test_premium_down_gives_the_small_models_answer_labelled(world):
    world.small.default.logprob = -3.0
    world.premium.default.status = 500
    response = await world.ask()
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "json it is"
    assert response.headers["x-factory-tier"] == "1"
    assert response.headers["x-factory-degraded"] == "true"
    assert charged(world, response) == [(1, True), (3, False), (3, False)]
    request, _ = world.recorded(response)
    assert request.degraded
    world.premium.default.status = 200
    healed = await world.ask()
    assert healed.headers["x-factory-cache"] == "miss"
    assert healed.headers["x-factory-tier"] == "3"


async def test_premium_down_for_a_hard_prompt_falls_to_a_lesser_tier(world):
    world.premium.default.status = 503
    response = await world.ask("prove that")
    assert response.headers["x-factory-tier"] == "1"
    assert response.headers["x-factory-degraded"] == "true"


async def test_a_long_retry_after_is_not_waited_for(world):
    world.small.default.status = 429
    world.small.default.headers = {"Retry-After": "30"}
    response = await world.ask()
    assert response.headers["x-factory-tier"] == "3"
    assert len(world.small.bodies) == 1
    alone = await world.ask(model="cheap")
    assert alone.status_code == 503
    assert alone.headers["retry-after"] == "30"
    assert alone.json()["error"]["code"] == "service_unavailable"
    assert alone.json()["error"]["type"] == "server_error"


async def test_nothing_can_serve(world):
    world.small.default.status = world.premium.default.status = 500
    response = await world.ask()
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    request, charges = world.recorded(response)
    assert (request.status, request.http_status, request.cost_nusd) == ("error", 503, 0)
    assert len(charges) == 4


async def test_garbage_is_a_failure_of_the_provider(world):
    world.small.script += [Play(garbage=True), Play(garbage=True)]
    response = await world.ask()
    assert response.headers["x-factory-tier"] == "3"
    assert "not an OpenAI completion" in response.headers["x-factory-route-reason"]


async def test_too_slow_is_not_retried_and_the_read_prompt_is_charged(world):
    world.small.default.wait_before = asyncio.Event()
    response = await world.ask("one two three", model="swift", max_tokens=2)
    world.small.default.wait_before.set()
    assert response.headers["x-factory-tier"] == "3"
    assert "no answer within 0.2 s (3 times" in response.headers["x-factory-route-reason"]
    _, charges = world.recorded(response)
    assert [(charge.tier, charge.prompt_tokens) for charge in charges] == [(1, 3), (3, 10)]
    assert "no answer within" in charges[0].reason


async def test_a_stream_that_does_not_begin_is_taken_over_before_its_first_token(world):
    world.small.default.wait_before = asyncio.Event()
    response = await world.ask(model="swift", stream=True, max_tokens=60)
    world.small.default.wait_before.set()
    assert response.headers["x-factory-tier"] == "3"
    assert "asyncio" in response.text
    assert response.text.endswith("data: [DONE]\n\n")


async def test_the_last_tier_that_could_answer_is_waited_for(world):
    held = world.premium.default.wait_before = asyncio.Event()
    world.small.default.status = 500
    asking = asyncio.create_task(world.ask(model="swift", max_tokens=2))
    while not world.premium.bodies:
        await asyncio.sleep(0.005)
    # Longer than tier 3 would get if another tier could still stand in.
    await asyncio.wait({asking}, timeout=0.3)
    held.set()
    assert (await asking).headers["x-factory-tier"] == "3"


async def test_the_engines_400_is_the_clients(world):
    world.small.default.status = 400
    world.small.default.message = "seed is too odd"
    response = await world.ask()
    assert response.status_code == 400
    assert "seed is too odd" in response.json()["error"]["message"]
    request, _ = world.recorded(response)
    assert request.status == "refused"
    assert not world.premium.bodies


async def test_a_premium_400_after_a_good_try_sends_what_is_in_hand(world):
    world.small.default.logprob = -3.0
    world.premium.default.status = 400
    response = await world.ask()
    assert (response.status_code, response.headers["x-factory-tier"]) == (200, "1")
    assert response.headers["x-factory-degraded"] == "true"


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
async def test_the_providers_key_is_never_shown(world, status):
    world.premium.default.status = status
    world.premium.default.message = f"wrong key {PREMIUM_KEY} given"
    world.small.default.status = 500
    response = await world.ask("prove that")
    request, charges = world.recorded(response)
    assert world.premium.keys[0] == f"Bearer {PREMIUM_KEY}"
    assert PREMIUM_KEY not in response.text + str(response.headers) + str(request) + str(charges)


async def test_a_missing_usage_is_estimated_and_never_free(world):
    world.small.default.usage = False
    response = await world.ask("one two three")
    request, charges = world.recorded(response)
    assert (request.prompt_tokens, request.completion_tokens) == (3, 3)
    assert "estimated" in charges[0].reason


async def test_the_ledger_down_withholds_the_answer(world, monkeypatch):
    async def record(request, charges):
        raise LedgerUnavailable("the disk is full")

    monkeypatch.setattr(world.writer, "record", record)
    response = await world.ask()
    assert response.status_code == 503
    assert "json" not in response.text
    streamed = await world.ask(stream=True, model="cheap")
    assert "[DONE]" not in streamed.text
    assert "ledger" in streamed.text
