"""Teams get turns by weight, nobody starves, and production's engines are kept free for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.gateway.errors import ApiError
from factory.gateway.fairness import CALM_S, Beside, Caller, Shares, engine_priority
from factory.gateway.turns import Turns

WEIGHTS = st.lists(st.integers(1, 8), min_size=2, max_size=4)


def served(weights: list[int], rounds: int) -> list[str]:
    """Who is served, one at a time, where every team always has requests waiting."""
    shares, line, order = Shares(), [], []
    callers = [Caller(team=f"t{n}", weight=weight) for n, weight in enumerate(weights)]
    for _ in range(rounds):
        line += [(shares.stamp(caller, 0.0, 1.0, 1), len(line), caller) for caller in callers]
    for _stamp, _, caller in sorted(line, key=lambda one: one[:2]):
        shares.left(caller)
        order.append(caller.team)
    return order


@given(WEIGHTS)
def test_turns_go_by_weight_among_teams_that_all_wait(weights):
    first = Counter(served(weights, 200)[: 10 * sum(weights)])
    for number, weight in enumerate(weights):
        assert abs(first[f"t{number}"] - 10 * weight) <= 2 * len(weights)


@given(st.integers(1, 300), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_flood_of_one_team_delays_another_by_one_turn_and_not_by_the_flood(flood, mine, theirs):
    shares = Shares()
    flooding = Caller(team="flood", weight=theirs)
    stamps = [shares.stamp(flooding, 0.0, 1.0, 1) for _ in range(flood)]
    stamp = shares.stamp(Caller(team="quiet", weight=mine), 0.5, 1.0, 1)
    assert stamp == 0.5
    assert sum(one < stamp for one in stamps) <= 1


@given(st.lists(st.floats(0, 5), min_size=1, max_size=50), st.floats(0.1, 10))
def test_a_stamp_is_finite_and_never_before_the_arrival(waits, weight):
    shares, now = Shares(), 0.0
    caller = Caller(team="a", weight=weight)
    for number, wait in enumerate(waits):
        now += wait
        stamp = shares.stamp(caller, now, 0.5, 4)
        assert now <= stamp <= now + (number + 1) * 0.5 / 4


def test_who_has_nothing_in_line_begins_anew():
    shares = Shares()
    caller = Caller(team="a")
    for _ in range(5):
        shares.stamp(caller, 0.0, 1.0, 1)
    for _ in range(5):
        shares.left(caller)
    assert shares.stamp(caller, 0.1, 1.0, 1) == 0.1


def test_engines_order_by_class_and_then_by_the_teams_priority():
    told = [
        engine_priority(Caller(class_=class_), priority)
        for class_ in ("production", "internal", "batch")
        for priority in (100, 50, 0)
    ]
    assert told == sorted(set(told))
    assert told[0] == 0


class Noting:
    """Passes requests on to an engine without the priority, which it notes."""

    def __init__(self, engine):
        self.engine, self.told = engine, []

    async def answer(self, body, route="chat"):
        body = dict(body)
        self.told.append(body.pop("priority", None))
        return await self.engine.answer(body, route)


async def test_only_engines_that_order_their_queue_are_told(world):
    for endpoint, prioritizes, told in (("cheap", True, 151), ("fresh", False, None)):
        served = world.serving[endpoint][1]
        engine = Noting(served.engine)
        world.serving[endpoint][1] = replace(served, engine=engine, prioritizes=prioritizes)
        assert (await world.ask("which module?", model=endpoint)).status_code == 200
        assert engine.told == [told]


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


PRODUCTION = Caller(team="p", class_="production", engines=frozenset({"e"}))
INTERNAL = Caller(team="i", class_="internal", engines=frozenset({"e"}))
ELSEWHERE = Caller(team="i", class_="batch", engines=frozenset({"other"}))


def test_production_keeps_its_engine_until_it_has_been_calm():
    time = Time()
    beside = Beside(1, time)
    assert beside.admits(INTERNAL)
    beside.came(PRODUCTION)
    assert beside.admits(INTERNAL)
    beside.began(INTERNAL)
    assert not beside.admits(INTERNAL)
    assert beside.admits(PRODUCTION)
    assert beside.admits(ELSEWHERE)
    assert beside.went(PRODUCTION)
    time.now += CALM_S - 0.1
    assert not beside.admits(INTERNAL)
    time.now += 0.2
    assert beside.admits(INTERNAL)


async def hold(turns, caller, begun, release):
    async with turns.take(50, (), caller):
        begun.append(caller.class_)
        await release.wait()


async def settle_down():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_flood_leaves_all_other_places_to_production():
    turns = Turns(16, 30.0)
    begun, release = [], asyncio.Event()
    tasks = [asyncio.create_task(hold(turns, PRODUCTION, begun, release))]
    await settle_down()
    tasks += [asyncio.create_task(hold(turns, INTERNAL, begun, release)) for _ in range(20)]
    tasks += [asyncio.create_task(hold(turns, PRODUCTION, begun, release)) for _ in range(3)]
    await settle_down()
    assert Counter(begun) == {"production": 4, "internal": 1}
    release.set()
    await asyncio.gather(*tasks[:1])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (turns.running, turns.waiting) == (0, 0)
    assert not any(turns._beside._busy.values())
    assert not any(turns._beside._lower.values())
    assert not turns._shares._waiting


async def test_a_full_line_sheds_the_lowest_class_first_whatever_its_priority():
    turns = Turns(1, 30.0, max_waiting=1)
    async with turns.take(50):
        batch = asyncio.create_task(hold(turns, ELSEWHERE, [], asyncio.Event()))
        await settle_down()
        release = asyncio.Event()
        important = asyncio.create_task(hold(turns, PRODUCTION, [], release))
        with pytest.raises(ApiError) as shed:
            await batch
        assert int(shed.value.headers["Retry-After"]) >= 1
        with pytest.raises(ApiError):
            await turns.take(100, (), INTERNAL).begin()
        release.set()
    await important


async def test_a_refusal_says_that_production_is_in_the_way():
    turns = Turns(4, 0.01)
    async with turns.take(50, (), PRODUCTION), turns.take(50, (), INTERNAL):
        with pytest.raises(ApiError) as refused:
            await turns.take(50, (), INTERNAL).begin()
    assert "production uses this engine" in refused.value.message
    assert refused.value.headers["Retry-After"] == "10"
