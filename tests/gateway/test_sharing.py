"""Identical requests in flight share one computation; kept answers outlive a restart."""

from __future__ import annotations

import asyncio

import pytest
from conftest import made
from provider_server import Play


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


async def crowd(world, number, **fields):
    """Ask for the same `number` times, all while the first is being answered."""
    gate = asyncio.Event()
    play = fields.pop("play", {"wait_before": gate})
    world.small.script.append(Play(**{"wait_before": gate, **play}))
    asking = [asyncio.create_task(world.ask(model="cheap", **fields)) for _ in range(number)]
    flights = world.gateway._delivery._flights
    await until(lambda: sum(f.passengers for f in flights._open.values()) == number)
    return gate, asking


@pytest.mark.parametrize("stream", [False, True])
async def test_one_pays_and_all_are_answered(world, stream):
    gate, asking = await crowd(world, 6, stream=stream)
    gate.set()
    replies = await asyncio.gather(*asking)
    assert len(world.small.bodies) == 1
    assert all("json" in reply.text and reply.status_code == 200 for reply in replies)
    ids = {reply.headers["x-factory-request-id"] for reply in replies}
    assert len(ids) == 6
    for reply in replies:
        assert reply.headers["x-factory-request-id"] in reply.text
    requests = {one.request_id: one for one in world.all_requests()}
    assert set(requests) == ids
    costs = sorted(one.cost_nusd for one in requests.values())
    assert costs == [0, 0, 0, 0, 0, 320]
    for reply in replies:
        request, (charge,) = world.recorded(reply)
        shared = request.cost_nusd == 0
        assert request.status == "ok"
        assert (charge.kind, request.cache) == (
            ("shared", "shared") if shared else ("generation", "miss")
        )
        assert (charge.tier, request.tier) == ((0, 0) if shared else (1, 1))
        assert reply.headers["x-factory-cache"] == request.cache
        assert (request.prompt_tokens, request.completion_tokens) == (10, 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_one_who_pays_leaves_and_the_others_are_answered(world, stream):
    gate, asking = await crowd(world, 1, stream=stream)
    (flight,) = world.gateway._delivery._flights._open.values()
    asking += [asyncio.create_task(world.ask(model="cheap", stream=stream)) for _ in range(3)]
    await until(lambda: flight.passengers == 4)
    asking[0].cancel()
    if stream:
        await until(lambda: flight.passengers == 3)
    gate.set()
    replies = await asyncio.gather(*asking[1:])
    assert len(world.small.bodies) == 1
    assert all("json" in reply.text for reply in replies)
    await until(lambda: len(world.all_requests()) == 4)
    assert sorted(one.cost_nusd for one in world.all_requests()) == [0, 0, 0, 320]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_reaches_all_each_with_its_own_id(world, stream):
    gate, asking = await crowd(world, 4, stream=stream, play={"status": 400})
    gate.set()
    replies = await asyncio.gather(*asking)
    assert {reply.status_code for reply in replies} == {400}
    assert len({reply.headers["x-factory-request-id"] for reply in replies}) == 4
    for reply in replies:
        request, _ = world.recorded(reply)
        assert (request.http_status, request.cost_nusd) == (400, 0)


async def test_a_stream_that_breaks_breaks_for_all(world):
    gate, asking = await crowd(world, 3, stream=True, play={"cut_after": 2})
    gate.set()
    replies = await asyncio.gather(*asking)
    assert all("broke off" in reply.text for reply in replies)
    requests = world.all_requests()
    assert [one.status for one in requests] == ["error"] * 3
    assert sum(one.cost_nusd > 0 for one in requests) == 1


async def test_when_all_have_left_the_model_is_stopped_and_the_leader_pays(world):
    held = asyncio.Event()
    play = {"wait_before": None, "wait_after": (2, held)}
    _, asking = await crowd(world, 3, stream=True, play=play)
    (flight,) = world.gateway._delivery._flights._open.values()
    await until(lambda: len(flight.items) > 1)
    for one in asking:
        one.cancel()
    await world.small.abandoned.wait()
    held.set()
    await until(lambda: len(world.all_requests()) == 3)
    requests = world.all_requests()
    assert [one.http_status for one in requests] == [499] * 3
    assert sum(one.cost_nusd > 0 for one in requests) == 1


async def test_sampling_and_other_questions_are_not_shared(world):
    await asyncio.gather(*(world.ask(model="cheap", temperature=1) for _ in range(3)))
    await asyncio.gather(*(world.ask(f"question {n}", model="cheap") for n in range(3)))
    await asyncio.gather(*(world.ask(model="fresh") for _ in range(2)))
    assert len(world.small.bodies) == 8


async def test_a_kept_answer_survives_a_restart(folder):
    async with made(folder) as world:
        first = await world.ask("keep this", model="cheap")
        assert first.headers["x-factory-cache"] == "miss"
    async with made(folder) as world:
        again = await world.ask("keep this", model="cheap")
        assert again.headers["x-factory-cache"] == "hit"
        assert again.json()["choices"] == first.json()["choices"]
        streamed = await world.ask("keep this", model="cheap", stream=True)
        assert streamed.headers["x-factory-cache"] == "hit"
        assert not world.small.bodies
