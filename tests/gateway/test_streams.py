"""Streams as OpenAI's own client sees them, and what is settled when they end or break."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from provider_server import Play

QUESTION = [{"role": "user", "content": "which module?"}]


async def text_of(stream):
    pieces, last = [], None
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
        last = chunk
    return pieces, last


async def settled(world, request_id):
    """The record of a request that is settled after its client left."""
    while (found := world.ledger.request(request_id)) is None:
        await asyncio.sleep(0.01)
    return found


def figures(body):
    line = next(line for line in body.splitlines() if line.startswith(": factory "))
    return json.loads(line.removeprefix(": factory "))


async def test_without_a_climb_tokens_pass_as_they_come(world):
    # The guard holds back the last word: it might be the beginning of something to redact.
    gate = asyncio.Event()
    world.small.script.append(Play(wait_after=(2, gate)))
    stream = await world.client.chat.completions.create(
        model="cheap", messages=QUESTION, stream=True
    )
    chunks = stream.__aiter__()
    while True:
        chunk = await anext(chunks)
        if chunk.choices[0].delta.content:
            break
    assert chunk.choices[0].delta.content == "json"
    assert not gate.is_set()
    gate.set()
    pieces, last = await text_of(stream)
    assert pieces == [" it", " is"]
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].logprobs is None
    assert stream.response.headers["x-factory-tier"] == "1"
    assert "x-factory-cost-usd" not in stream.response.headers
    request, charges = await settled(world, chunk.id)
    assert (request.status, request.completion_tokens, len(charges)) == ("ok", 3, 1)


async def test_a_stream_is_settled_before_done_and_ends_with_its_figures(world):
    response = await world.ask(model="cheap", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    told = figures(response.text)
    assert told["cost_usd"] == "0.000000320"
    assert (told["tier"], told["model"], told["degraded"]) == (1, "small@1", False)
    assert world.recorded(response)[0].cost_nusd == 320


async def test_usage_comes_last_when_asked_for(world):
    for cache in ("miss", "hit"):
        stream = await world.client.chat.completions.create(
            model="cheap",
            messages=QUESTION,
            stream=True,
            stream_options={"include_usage": True},
        )
        pieces, last = await text_of(stream)
        assert "".join(pieces) == "json it is"
        assert last.choices == []
        assert last.usage.completion_tokens == 3
        assert last.model_extra["factory"]["cache"] == cache


async def test_streams_and_whole_answers_share_the_cache(world):
    whole = await world.ask(model="cheap")
    replayed = await world.ask(model="cheap", stream=True)
    assert replayed.headers["x-factory-cache"] == "hit"
    assert replayed.headers["x-factory-cost-usd"] == "0.000000000"
    stream = await world.client.chat.completions.create(
        model="cheap", messages=QUESTION, stream=True
    )
    pieces, last = await text_of(stream)
    assert "".join(pieces) == whole.json()["choices"][0]["message"]["content"]
    assert last.choices[0].finish_reason == "stop"


async def test_where_a_climb_is_possible_the_answer_is_judged_then_replayed(world):
    response = await world.ask(stream=True)
    assert response.headers["x-factory-tier"] == "1"
    assert response.headers["x-factory-cost-usd"] == "0.000000320"
    assert "json it is" in response.text


async def test_a_climbing_stream_comes_live_from_the_last_tier(world):
    world.small.default.logprob = -3.0
    gate = asyncio.Event()
    world.premium.script.append(Play(words=("asyncio", " surely", " so"), wait_after=(2, gate)))
    stream = await world.client.chat.completions.create(
        model="ladder", messages=QUESTION, stream=True
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            assert chunk.choices[0].delta.content == "asyncio"
            gate.set()
            break
    pieces, last = await text_of(stream)
    assert pieces == [" surely", " so"]
    assert stream.response.headers["x-factory-tier"] == "3"
    request, charges = await settled(world, last.id)
    assert [charge.tier for charge in charges] == [1, 3]
    assert request.cost_nusd == sum(charge.cost_nusd for charge in charges)


async def test_failover_before_the_first_token(world):
    world.small.default.logprob = -3.0
    world.premium.default.status = 500
    response = await world.ask(stream=True)
    assert response.status_code == 200
    assert response.headers["x-factory-degraded"] == "true"
    assert "json it is" in response.text
    world.small.default.status = 500
    failed = await world.ask("other", stream=True)
    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "service_unavailable"
    assert world.recorded(failed)[0].status == "error"


@pytest.mark.parametrize("fault", [{"cut_after": 2}, {"error_after": 2}])
async def test_an_error_after_the_first_token_is_an_event_and_is_charged(world, fault):
    world.small.default = Play(**fault)
    with pytest.raises(openai.APIError, match="broke off"):
        await text_of(
            await world.client.chat.completions.create(
                model="cheap", messages=QUESTION, stream=True
            )
        )
    (request,) = world.all_requests()
    assert (request.status, request.http_status) == ("error", 503)
    assert request.completion_tokens == 2
    assert request.cost_nusd > 0
    world.small.default = Play()
    assert (await world.ask(model="cheap")).headers["x-factory-cache"] == "miss"


async def test_garbage_in_a_stream_is_a_failure(world):
    world.small.default.garbage = True
    response = await world.ask(model="cheap", stream=True)
    assert response.status_code == 503


async def test_a_client_that_leaves_stops_the_model_and_pays_for_what_came(world):
    gate = asyncio.Event()
    world.small.script.append(Play(wait_after=(2, gate)))
    stream = await world.client.chat.completions.create(
        model="cheap", messages=QUESTION, stream=True
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await world.small.abandoned.wait()
    gate.set()
    request, charges = await settled(world, chunk.id)
    assert (request.status, request.http_status) == ("error", 499)
    assert [charge.completion_tokens for charge in charges] == [2]
    assert request.cost_nusd == 2 * 20 + 2 * 40
    assert request.prompt_tokens == 2


async def test_a_client_that_leaves_while_the_answer_is_judged_pays_too(world):
    gate = asyncio.Event()
    world.small.script.append(Play(wait_after=(1, gate)))
    asking = asyncio.create_task(world.ask(stream=True))
    while not world.small.bodies:
        await asyncio.sleep(0.01)
    asking.cancel()
    await world.small.abandoned.wait()
    gate.set()
    while not (requests := world.all_requests()):
        await asyncio.sleep(0.01)
    assert requests[0].http_status == 499
    assert requests[0].cost_nusd > 0


async def test_a_client_that_leaves_a_whole_answer_pays_for_it_and_it_is_kept(world):
    gate = asyncio.Event()
    world.small.script.append(Play(wait_before=gate))
    asking = asyncio.create_task(world.ask())
    while not world.small.bodies:
        await asyncio.sleep(0.01)
    asking.cancel()
    gate.set()
    while not (requests := world.all_requests()):
        await asyncio.sleep(0.01)
    assert requests[0].cost_nusd == 320
    assert (await world.ask()).headers["x-factory-cache"] == "hit"


async def test_logprobs_in_a_stream_only_when_asked_for(world):
    for logprobs in (True, False):
        stream = await world.client.chat.completions.create(
            model="ladder", messages=QUESTION, stream=True, logprobs=logprobs
        )
        shown = [c.choices[0].logprobs for c in [c async for c in stream] if c.choices]
        assert any(shown) is logprobs
