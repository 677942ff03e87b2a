"""Tools, several choices and answer formats, as OpenAI's own client sends and reads them."""

from __future__ import annotations

import json

import pytest
from provider_server import Play

QUESTION = [{"role": "user", "content": "weather in Oslo?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
ARGUMENTS = ('{"city":', ' "Oslo"}')


def chat(world, **fields):
    body = {"model": "cheap", "messages": QUESTION, **fields}
    return world.client.chat.completions.create(**body)


async def test_a_tool_call_reaches_the_client_and_its_result_the_model(world):
    world.small.script.append(Play(tool_arguments=ARGUMENTS))
    reply = await chat(world, tools=[TOOL], tool_choice="auto", parallel_tool_calls=False)
    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.id, call.function.name) == ("call_1", "look_up")
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    (asked,) = world.small.bodies
    assert (asked["tools"], asked["tool_choice"]) == ([TOOL], "auto")
    assert asked["parallel_tool_calls"] is False

    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    turns = [*QUESTION, choice.message.model_dump(exclude_none=True), result]
    answer = await chat(world, messages=turns, tools=[TOOL])
    assert answer.choices[0].message.content == "json it is"
    assert answer.choices[0].message.tool_calls is None
    assert world.small.bodies[1]["messages"] == turns


@pytest.mark.parametrize("model", ["cheap", "ladder"])
async def test_a_tool_call_streams_live_judged_and_from_the_cache(world, model):
    world.small.default = Play(tool_arguments=ARGUMENTS)
    for cache in ("miss", "hit"):
        stream = await chat(world, model=model, tools=[TOOL], stream=True)
        assert stream.response.headers["x-factory-cache"] == cache
        name, arguments, finish = "", "", None
        async for chunk in stream:
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or ():
                    assert call.index == 0
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
                finish = choice.finish_reason or finish
        assert (name, json.loads(arguments), finish) == (
            "look_up",
            {"city": "Oslo"},
            "tool_calls",
        )


@pytest.mark.parametrize("model", ["cheap", "ladder"])
async def test_several_choices_are_counted_kept_and_streamed(world, model):
    whole = await chat(world, model=model, n=3)
    assert [one.index for one in whole.choices] == [0, 1, 2]
    assert {one.message.content for one in whole.choices} == {"json it is"}
    assert whole.usage.completion_tokens == 9
    assert world.small.bodies[0]["n"] == 3

    for headers in ({}, {"Cache-Control": "no-cache"}):
        stream = await chat(world, model=model, n=3, stream=True, extra_headers=headers)
        said = {}
        ends = []
        async for chunk in stream:
            for one in chunk.choices:
                said[one.index] = said.get(one.index, "") + (one.delta.content or "")
                ends += [one.index] if one.finish_reason else []
        assert said == dict.fromkeys(range(3), "json it is")
        assert sorted(ends) == [0, 1, 2]
    requests = world.all_requests()
    assert [one.completion_tokens for one in requests] == [9, 9, 9]
    assert sorted(one.cache for one in requests) == ["hit", "miss", "miss"]


async def test_n_is_part_of_what_is_asked(world):
    await chat(world)
    reply = await chat(world, n=2)
    assert len(reply.choices) == 2


async def test_an_answer_format_reaches_the_model(world):
    world.small.default.words = ('{"a":', " null}")
    schema = {"type": "object", "properties": {"a": {"type": "null", "default": None}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    await chat(world, response_format=wanted)
    await chat(world, response_format={"type": "json_object"})
    assert [body["response_format"] for body in world.small.bodies] == [
        wanted,
        {"type": "json_object"},
    ]


async def test_every_sampling_field_reaches_the_model_and_the_clients_own_do_not(world):
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["x"],
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "logit_bias": {"42": -100},
        "max_completion_tokens": 5,
    }
    await chat(world, **asked, user="u", metadata={"run": "7"}, store=False)
    (body,) = world.small.bodies
    assert asked.items() <= body.items()
    assert not {"user", "metadata", "store"} & body.keys()


async def test_a_named_choice_among_the_tools(world):
    named = {"type": "function", "function": {"name": "look_up"}}
    world.small.default = Play(tool_arguments=ARGUMENTS)
    reply = await chat(world, tools=[TOOL], tool_choice=named)
    assert reply.choices[0].message.tool_calls[0].function.name == "look_up"
    assert world.small.bodies[0]["tool_choice"] == named


async def test_metadata_is_kept_with_the_request(world):
    named = await world.ask(metadata={"project": "onboarding"})
    again = await world.ask(metadata={"project": "billing"})
    assert again.headers["x-factory-cache"] == "hit"
    assert [world.recorded(one)[0].tags for one in (named, again)] == [
        {"project": "onboarding"},
        {"project": "billing"},
    ]
    assert (await world.ask(metadata={"project": "x" * 600})).status_code == 400
