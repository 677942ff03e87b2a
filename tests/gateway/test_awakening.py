"""Sleeping models: a tier that is awake stands in where time presses, otherwise requests wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Budget, Target
from factory.gateway.awakening import Awakening, detour
from factory.gateway.engine import EngineError
from factory.gateway.errors import ApiError
from factory.gateway.turns import Turns

TIERS = st.sets(st.integers(1, 3), min_size=1)


@given(TIERS, TIERS, st.data(), st.none() | st.floats(1, 60_000), st.floats(0, 120))
def test_a_detour_leads_to_a_usable_tier_that_is_awake_or_nowhere(
    usable, asleep, data, ttft_ms, wake_s
):
    start = data.draw(st.sampled_from(sorted(usable)))
    found = detour(sorted(usable), start, asleep, ttft_ms, wake_s)
    assert found.tier in usable
    if found.tier != start:
        assert start in asleep
        assert found.tier not in asleep
        assert ttft_ms is not None
        assert wake_s * 1000 > ttft_ms
        assert found.degraded == (found.tier < start)
    assert bool(found.reasons) == (start in asleep)


def test_the_next_higher_tier_stands_in_before_a_lower_one():
    assert detour((1, 2, 3), 2, {2}, 800, 12.0).tier == 3
    below = detour((1, 2), 2, {2}, 800, 12.0)
    assert (below.tier, below.degraded) == (1, True)
    assert "tier 2 is asleep and takes about 12 s to wake" in below.reasons[0]


def test_without_a_target_or_within_it_the_request_waits():
    assert detour((1, 3), 1, {1}, None, 12.0).tier == 1
    assert detour((1, 3), 1, {1}, 20_000, 12.0).tier == 1


class Sleeping:
    """An engine that wakes when the test says so."""

    def __init__(self, fails=False):
        self.asleep = True
        self.calls = 0
        self.come_up = asyncio.Event()
        self.fails = fails

    async def wake(self):
        self.calls += 1
        await self.come_up.wait()
        if self.fails:
            raise EngineError(503, "it does not come up", retryable=True)
        self.asleep = False


def put_to_sleep(world, endpoint="ladder", tier=1, **more):
    sleeper = Sleeping(**more)
    world.serving[endpoint][tier] = replace(world.serving[endpoint][tier], sleeper=sleeper)
    return sleeper


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_requests_wait_without_an_error_and_one_call_wakes_the_engine(world):
    sleeper = put_to_sleep(world, "cheap")
    waiting = [asyncio.create_task(world.ask(f"{n}?", model="cheap")) for n in range(3)]
    await until(lambda: world.gateway._computation.awakening.waiting == 3)
    assert world.gateway._computation.turns.running == 0
    sleeper.come_up.set()
    replies = await asyncio.gather(*waiting)
    assert [reply.status_code for reply in replies] == [200] * 3
    assert {reply.headers["x-factory-tier"] for reply in replies} == {"1"}
    assert sleeper.calls == 1


async def test_a_sleeping_embedder_is_woken_once_and_nobody_gets_an_error(world):
    sleeper = put_to_sleep(world, "search")
    asked = [{"model": "search", "input": word} for word in ("bad", "cafe", "fad")]
    waiting = [asyncio.create_task(world.http.post("/v1/embeddings", json=one)) for one in asked]
    await until(lambda: world.gateway._computation.awakening.waiting == 3)
    sleeper.come_up.set()
    replies = await asyncio.gather(*waiting)
    assert [reply.status_code for reply in replies] == [200] * 3
    assert sleeper.calls == 1


async def test_what_tier_0_knows_wakes_no_embedder(world):
    asked = {"model": "search", "input": "bad"}
    assert (await world.http.post("/v1/embeddings", json=asked)).status_code == 200
    sleeper = put_to_sleep(world, "search")
    again = await world.http.post("/v1/embeddings", json=asked)
    assert (again.status_code, again.headers["x-factory-cache"]) == (200, "hit")
    assert sleeper.calls == 0


async def test_a_warm_tier_answers_where_the_target_would_be_broken(world):
    sleeper = put_to_sleep(world)
    endpoint = world.settings.endpoints["ladder"]
    target = endpoint.model_copy(update={"target": Target(ttft_ms=500)})
    world.settings.endpoints["ladder"] = target
    reply = await world.ask("which module?")
    assert reply.headers["x-factory-tier"] == "3"
    assert "tier 3 is awake and answers" in reply.headers["x-factory-route-reason"]
    assert sleeper.calls == 1, "what was wanted is being woken for the next request"
    sleeper.come_up.set()


async def test_an_engine_that_does_not_come_up_leaves_the_rest_to_the_ladder(world):
    sleeper = put_to_sleep(world, fails=True)
    sleeper.come_up.set()
    assert (await world.ask("which module?")).status_code == 200


async def test_a_client_that_leaves_does_not_stop_the_wake(world):
    sleeper = put_to_sleep(world, "cheap")
    first = asyncio.create_task(world.ask("1?", model="cheap"))
    await until(lambda: sleeper.calls == 1)
    first.cancel()
    second = asyncio.create_task(world.ask("2?", model="cheap"))
    sleeper.come_up.set()
    assert (await second).status_code == 200
    assert sleeper.calls == 1


async def test_no_more_wait_than_may(world):
    sleeper = put_to_sleep(world, "cheap")
    served = world.serving["cheap"][1]
    awakening = Awakening(asyncio.get_running_loop().time, max_waiting=1)
    turns = Turns(2, 10.0)
    async with turns.take(50) as one, turns.take(50) as other:
        first = asyncio.create_task(awakening.rouse(served, one, 10))
        await until(lambda: awakening.waiting == 1)
        with pytest.raises(ApiError) as refused:
            await awakening.rouse(served, other, 10)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "5")
        sleeper.come_up.set()
        await first


async def test_a_sleeping_model_is_ready_and_is_not_asked(world):
    sleeper = put_to_sleep(world, "cheap")
    found = await world.gateway.ready()
    assert found.asleep == ("small@1",)
    assert not any(part.startswith("cheap") for part in found.problems)
    assert sleeper.calls == 0


async def test_who_prefers_to_ask_again_gets_an_address_and_later_the_answer(world):
    sleeper = put_to_sleep(world, "cheap")
    held = await world.ask("1?", model="cheap", headers={"Prefer": "respond-async"})
    assert held.status_code == 202
    assert held.headers["Preference-Applied"] == "respond-async"
    early = await world.http.get(held.headers["Location"])
    assert (early.json()["status"], early.json()["result"]) == ("approved", None)
    assert early.headers["Retry-After"] == "5"
    sleeper.come_up.set()
    await until(lambda: not sleeper.asleep)
    done = (await world.http.get(held.headers["Location"])).json()
    assert done["result"]["status"] == 200
    assert done["result"]["body"]["choices"][0]["message"]["content"]
    assert sleeper.calls == 1


async def test_the_preference_changes_nothing_for_a_model_that_is_awake(world):
    assert (await world.ask("1?", headers={"Prefer": "respond-async"})).status_code == 200


async def test_asking_later_is_no_way_around_a_budget(world):
    sleeper = put_to_sleep(world, "cheap")
    poor = world.key(budget=Budget(monthly_usd=0.0000001))
    headers = {**poor, "Prefer": "respond-async"}
    held = await world.ask("1?", model="cheap", headers=headers)
    sleeper.come_up.set()
    await until(lambda: not sleeper.asleep)
    done = (await world.http.get(held.headers["Location"], headers=poor)).json()
    assert done["result"]["status"] == 429
