"""A request's whole way over real HTTP: answers, headers, charges, cache, climb."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

from factory.config import NANO
from factory.ledger.keys import create_key


async def test_a_sure_answer_comes_from_the_cheapest_tier(world):
    response = await world.ask()
    assert response.status_code == 200
    body = response.json()
    assert body["choices"][0]["message"]["content"] == "json it is"
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    headers = response.headers
    assert headers["x-factory-request-id"] == body["id"]
    assert headers["x-factory-tier"] == "1"
    assert headers["x-factory-model"] == body["model"] == "small@1"
    assert headers["x-factory-cache"] == "miss"
    assert headers["x-factory-degraded"] == "false"
    assert float(headers["x-factory-overhead-ms"]) >= 0
    request, charges = world.recorded(response)
    assert (request.status, request.tier, request.endpoint) == ("ok", 1, "ladder")
    assert request.confidence > 0.9
    assert [charge.kind for charge in charges] == ["generation"]
    assert charges[0].cost_nusd == 10 * 20 + 3 * 40
    assert Decimal(headers["x-factory-cost-usd"]) * NANO == request.cost_nusd
    assert request.top_tier_nusd == 10 * 2_500 + 3 * 10_000
    assert not world.premium.bodies


async def test_the_engine_gets_what_the_client_asked_and_a_limit(world):
    await world.ask("one two three", temperature=0.5, seed=7, stop=["\n"], user="u-1")
    (body,) = world.small.bodies
    assert (body["temperature"], body["seed"], body["stop"]) == (0.5, 7, ["\n"])
    assert body["max_tokens"] == 64 - 3
    assert body["logprobs"] is True
    assert "user" not in body


async def test_an_unsure_answer_climbs_and_both_attempts_are_charged(world):
    world.small.default.logprob = -2.0
    response = await world.ask()
    assert response.json()["choices"][0]["message"]["content"] == "asyncio surely"
    assert response.headers["x-factory-tier"] == "3"
    assert response.headers["x-factory-degraded"] == "false"
    assert "climb to tier 3" in response.headers["x-factory-route-reason"]
    request, charges = world.recorded(response)
    assert [charge.tier for charge in charges] == [1, 3]
    assert "confidence 0.135 < 0.5" in charges[0].reason
    assert request.cost_nusd == (10 * 20 + 3 * 40) + (10 * 2_500 + 2 * 10_000)
    assert "logprobs" not in world.premium.bodies[0]


async def test_a_repeat_is_a_free_hit_with_its_own_id(world):
    first = await world.ask()
    second = await world.ask()
    assert second.headers["x-factory-cache"] == "hit"
    assert second.headers["x-factory-tier"] == "0"
    assert second.headers["x-factory-cost-usd"] == "0.000000000"
    assert second.json()["id"] != first.json()["id"]
    assert second.json()["choices"] == first.json()["choices"]
    request, charges = world.recorded(second)
    assert (request.cache, request.tier, request.cost_nusd) == ("hit", 0, 0)
    assert request.top_tier_nusd == 10 * 2_500 + 3 * 10_000
    assert [charge.kind for charge in charges] == ["cache"]
    assert len(world.small.bodies) == 1


async def test_the_cache_keeps_apart_what_differs(world):
    await world.ask()
    for change in (
        {"text": "which module ?"},
        {"temperature": 0},
        {"max_tokens": 5},
        {"logprobs": True},
        {"model": "cheap"},
    ):
        response = await world.ask(**change)
        assert response.headers["x-factory-cache"] == "miss", change
    for same in ({"n": 1}, {"user": "someone"}, {"stop": None}, {"stream": False}):
        response = await world.ask(**same)
        assert response.headers["x-factory-cache"] == "hit", same


async def test_a_new_model_version_is_asked_anew(world):
    await world.ask()
    world.serving["ladder"][1] = dataclasses.replace(world.serving["ladder"][1], version="2")
    assert (await world.ask()).headers["x-factory-cache"] == "miss"


async def test_sampling_and_cache_control_bypass_the_cache(world):
    await world.ask()
    sampled = await world.ask(temperature=0.7)
    assert sampled.headers["x-factory-cache"] == "off"
    assert (await world.ask(temperature=0.7)).headers["x-factory-cache"] == "off"
    no_store = await world.ask(headers={"Cache-Control": "no-store"})
    assert no_store.headers["x-factory-cache"] == "off"
    no_cache = await world.ask(headers={"Cache-Control": "max-age=0, no-cache"})
    assert no_cache.headers["x-factory-cache"] == "miss"
    assert (await world.ask(model="fresh")).headers["x-factory-cache"] == "off"
    assert (await world.ask(model="fresh")).headers["x-factory-cache"] == "off"


async def test_logprobs_are_shown_only_when_asked_for(world):
    response = await world.ask(logprobs=True, top_logprobs=2)
    entries = response.json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["json", " it", " is"]
    assert world.small.bodies[0]["top_logprobs"] == 2


async def test_a_hard_prompt_skips_the_cheap_tier(world):
    by_pattern = await world.ask("Prove that it halts")
    assert by_pattern.headers["x-factory-tier"] == "3"
    by_length = await world.ask("word " * 31)
    assert by_length.headers["x-factory-tier"] == "3"
    assert "31 tokens > 30" in by_length.headers["x-factory-route-reason"]
    assert not world.small.bodies


async def test_a_prompt_that_only_a_higher_tier_can_hold_goes_there(world):
    response = await world.ask("hi", max_tokens=64)
    assert response.headers["x-factory-tier"] == "3"
    assert response.headers["x-factory-degraded"] == "false"


async def test_a_restricted_endpoint_never_leaves_the_cluster(world):
    world.small.default.logprob = -3.0
    response = await world.ask("Prove that", model="secret")
    assert response.status_code == 200
    assert response.headers["x-factory-tier"] == "1"
    assert response.headers["x-factory-degraded"] == "true"
    assert "closed to restricted" in response.headers["x-factory-route-reason"]
    world.small.default.status = 500
    response = await world.ask("another", model="secret")
    assert response.status_code == 503
    assert not world.premium.bodies


async def test_an_unsure_answer_is_labelled_when_premium_is_switched_off(world):
    world.small.default.logprob = -3.0
    world.serving["ladder"][3] = dataclasses.replace(
        world.serving["ladder"][3], off="models.premium has no api_key set"
    )
    response = await world.ask()
    assert response.headers["x-factory-tier"] == "1"
    assert response.headers["x-factory-degraded"] == "true"
    assert "no api_key set" in response.headers["x-factory-route-reason"]
    again = await world.ask()
    assert (again.headers["x-factory-cache"], again.headers["x-factory-degraded"]) == (
        "hit",
        "true",
    )


async def test_an_endpoint_without_a_higher_tier_is_never_degraded(world):
    world.small.default.logprob = -3.0
    response = await world.ask(model="cheap")
    assert response.headers["x-factory-degraded"] == "false"
    assert "logprobs" not in world.small.bodies[0]


async def test_the_way_is_explained_to_its_own_team_only(world):
    response = await world.ask()
    request_id = response.json()["id"]
    told = (await world.http.get(f"/v1/requests/{request_id}")).json()
    assert request_id in str(told)
    assert "0.000000320" in str(told)
    stranger, _ = create_key(world.ledger, world.settings, "research")
    refused = await world.http.get(
        f"/v1/requests/{request_id}", headers={"Authorization": f"Bearer {stranger}"}
    )
    assert refused.status_code == 404
    assert (await world.http.get("/v1/requests/none")).status_code == 404


async def test_models_lists_what_the_key_may_use(world):
    listing = (await world.http.get("/v1/models")).json()
    assert [model["id"] for model in listing["data"]] == [
        "ladder",
        "cheap",
        "fresh",
        "swift",
        "secret",
        "search",
    ]
    assert [rung["model"] for rung in listing["data"][0]["served_by"]] == ["small@1", "premium"]
    ids = [model.id async for model in await world.client.models.list()]
    assert ids == ["ladder", "cheap", "fresh", "swift", "secret", "search"]
