"""Budgets and limits on a request's way: what fits, what does not, and what clients are told."""

from __future__ import annotations

import asyncio

import pytest
from conftest import CONFIG, World, made
from provider_server import Play

from factory.config import Budget, Limits
from factory.ledger.spend import reconcile

SMALL_NUSD = 4 * 20 + 3 * 40
"""What tier 1 charges for a prompt of 4 words and an answer of 3."""


def with_team(text: str) -> str:
    return CONFIG.replace("{support: {}, research: {}}", f"{{support: {text}, research: {{}}}}")


async def test_a_budget_that_is_used_up_refuses_with_429(folder):
    limit = "{budget: {daily_usd: 0.000004}}"
    async with made(folder, with_team(limit)) as world:
        first = await world.ask("one two three four", model="cheap", max_tokens=60)
        assert first.status_code == 200
        second = first
        for number in range(30):
            second = await world.ask(f"another {number} to pay", model="cheap", max_tokens=60)
            if second.status_code != 200:
                break
        assert second.status_code == 429
        error = second.json()["error"]
        assert error["code"] == "budget_exceeded"
        assert "team:support" in error["message"]
        assert 1 <= int(second.headers["Retry-After"]) <= 86_400
        request, charges = world.recorded(second)
        assert (request.status, request.cost_nusd, charges[0].kind) == ("refused", 0, "refusal")
        spent = sum(one.cost_nusd for one in world.all_requests())
        assert 0 < spent <= 4_000
        assert reconcile(world.ledger) == []


async def test_a_hit_is_free_when_nothing_is_left(folder):
    async with made(folder, with_team("{budget: {daily_usd: 0.000003}}")) as world:
        assert (await world.ask("a", model="cheap", max_tokens=50)).status_code == 200
        others = [await world.ask(str(n), model="cheap", max_tokens=50) for n in range(20)]
        assert others[-1].status_code == 429
        again = await world.ask("a", model="cheap", max_tokens=50)
        assert (again.status_code, again.headers["x-factory-cache"]) == (200, "hit")
        assert again.headers["x-factory-cost-usd"] == "0.000000000"


async def test_cheap_tiers_answer_where_the_dear_one_does_not_fit(folder):
    limit = "{budget: {monthly_usd: 0.0005, at_limit: cheap_tiers}}"
    async with made(folder, with_team(limit)) as world:
        world.small.default = Play(logprob=-3.0)
        reply = await world.ask("which module?", model="ladder", max_tokens=60)
        assert reply.status_code == 200
        assert reply.headers["x-factory-tier"] == "1"
        assert reply.headers["x-factory-degraded"] == "true"
        assert "budget" in reply.headers["x-factory-route-reason"]
        assert not world.premium.bodies


async def test_a_budget_that_wants_a_person_gets_one(folder):
    limit = "{budget: {monthly_usd: 0.000001, at_limit: review}}"
    async with made(folder, with_team(limit)) as world:
        held = await world.ask("which module?", model="cheap", max_tokens=50)
        assert held.status_code == 202
        address = held.headers["Location"]
        assert (await world.http.get(address)).json()["status"] == "pending"
        reviewer = world.key(roles=["reviewer"])
        decided = await world.http.post(address, json={"decision": "approve"}, headers=reviewer)
        assert decided.json()["status"] == "approved"
        done = (await world.http.get(address)).json()
        assert done["status"] == "done", done
        body = done["result"]["body"]
        assert body["choices"][0]["message"]["content"] == "json it is"
        paid, _ = world.ledger.request(body["id"])
        assert paid.cost_nusd > 0
        assert len(world.small.bodies) == 1


async def test_a_key_has_a_budget_of_its_own(world: World):
    poor = world.key(budget=Budget(daily_usd="0.0000001"))
    refused = await world.ask(model="cheap", headers=poor)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")
    assert (await world.ask(model="cheap")).status_code == 200


async def test_no_money_is_held_once_everything_is_settled(folder):
    async with made(folder, with_team("{budget: {daily_usd: 1}}")) as world:
        asked = [
            world.ask(f"question {number}", model="cheap", stream=number % 2 == 0)
            for number in range(12)
        ]
        world.small.script.extend([Play(status=500), Play(garbage=True), Play(status=400)])
        replies = await asyncio.gather(*asked)
        assert {reply.status_code for reply in replies} <= {200, 400, 503}
        assert reconcile(world.ledger) == []
        with world.ledger.read() as connection:
            from factory.ledger.schema import RESERVATIONS

            assert connection.execute(RESERVATIONS.select()).all() == []


@pytest.mark.parametrize(
    ("limits", "fields", "status", "code"),
    [
        ({"max_input_tokens": 3}, {}, 400, "max_input_tokens_exceeded"),
        ({"max_output_tokens": 5}, {"max_tokens": 6}, 400, "max_output_tokens_exceeded"),
        ({"max_request_usd": "0.000001"}, {"max_tokens": 50}, 400, "request_too_expensive"),
        ({"tokens_per_minute": 10}, {"max_tokens": 50}, 413, "request_too_large"),
    ],
)
async def test_a_request_beyond_its_limits_is_told_so(world: World, limits, fields, status, code):
    headers = world.key(limits=Limits(**limits))
    reply = await world.ask("one two three four", model="cheap", headers=headers, **fields)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert not world.small.bodies


async def test_an_answer_without_a_limit_gets_that_of_its_key(world: World):
    headers = world.key(limits=Limits(max_output_tokens=7))
    assert (await world.ask(model="cheap", headers=headers)).status_code == 200
    assert world.small.bodies[0]["max_tokens"] == 7


async def test_requests_per_minute_count_hits_too(world: World):
    headers = world.key(limits=Limits(requests_per_minute=2))
    replies = [await world.ask(model="cheap", headers=headers) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert replies[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(replies[2].headers["Retry-After"]) >= 1
