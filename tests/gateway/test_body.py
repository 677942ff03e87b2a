"""The request body: whatever the bytes, either a checked request or a 400 that names the reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.gateway.body import ChatRequest, parse
from factory.gateway.errors import ApiError

GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def request(**fields) -> ChatRequest:
    return parse(json.dumps({**GOOD, **fields}).encode())


def refusal_of(raw: bytes) -> ApiError | None:
    try:
        parse(raw)
    except ApiError as error:
        return error
    return None


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_request_or_a_400(raw):
    refusal = refusal_of(raw)
    assert refusal is None or (refusal.status == 400 and refusal.message)


@settings(deadline=None)
@given(st.sampled_from(sorted(ChatRequest.model_fields)), JSON_VALUES)
def test_any_value_in_any_field_ends_in_a_request_or_a_400(field, value):
    refusal = refusal_of(json.dumps({**GOOD, field: value}).encode())
    assert refusal is None or (refusal.status == 400 and refusal.message)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20).filter(lambda name: name not in ChatRequest.model_fields))
def test_an_unknown_field_is_named(name):
    with pytest.raises(ApiError) as caught:
        request(**{name: 1})
    assert caught.value.code == "unsupported_parameter"
    assert name in caught.value.message


def test_the_canonical_form_ignores_order_and_delivery():
    one = parse(b'{"model":"m","temperature":0,"messages":[{"content":"hi","role":"user"}]}')
    other = request(temperature=0.0, stream=True, user="u", n=1, stop=None)
    assert one.canonical() == other.canonical()
    assert one.canonical() != request().canonical()


@pytest.mark.parametrize(
    ("fields", "repeatable"),
    [
        ({}, True),
        ({"temperature": 0}, True),
        ({"temperature": 0.1}, False),
        ({"temperature": 0.1, "seed": 0}, True),
        ({"temperature": None}, True),
    ],
)
def test_what_is_repeatable(fields, repeatable):
    assert request(**fields).repeatable is repeatable


def test_an_engine_gets_only_what_was_said():
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    body = request(messages=parts, stream=True, max_completion_tokens=4, stop=None).engine_body()
    assert body == {"messages": parts, "max_completion_tokens": 4}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "does f",
        "parameters": {
            "type": "object",
            "properties": {"type": {"type": "string", "description": "its kind", "default": None}},
            "required": ["type"],
        },
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "description": "d", "schema": SCHEMA}}
FULL = {
    "messages": [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "p1"}, {"type": "text", "text": "p2"}],
        },
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "result"},
        {"role": "assistant", "content": "", "refusal": "no"},
        {"role": "user", "content": "why?"},
    ],
    "tools": [TOOL],
    "response_format": FORMAT,
}


def test_every_text_is_seen_and_can_be_replaced():
    full = request(**FULL)
    arguments = '{"a": 1}'
    assert full.texts == (
        *("be brief", "p1", "p2", arguments, "result", "", "no", "why?"),
        *("does f", "its kind", "d", "x", "y"),
    )
    assert full.with_texts(full.texts) == full
    changed = full.with_texts([text.upper() for text in full.texts])
    assert changed.texts == tuple(text.upper() for text in full.texts)
    assert json.loads(json.dumps(changed.engine_body())) == changed.engine_body()
    assert changed.engine_body()["tools"][0]["function"]["parameters"]["required"] == ["type"]
    with pytest.raises(ValueError, match="has 13 texts, not 1"):
        full.with_texts(["x"])


def test_an_engine_gets_tools_and_schema_as_they_were_sent():
    body = request(**FULL).engine_body()
    assert body["tools"] == [TOOL]
    assert body["response_format"] == FORMAT
    assert body["messages"] == FULL["messages"]
    assert request(**FULL).json_schema == SCHEMA
    assert request(**FULL).wants_json
    assert request().json_schema is None


def test_what_is_counted_includes_calls_and_tools():
    turns = request(**FULL).turns
    assert [turn["role"] for turn in turns] == (
        ["system", "user", "assistant", "tool", "assistant", "user"]
    )
    assert turns[0]["content"].startswith("be brief\n[")
    assert "does f" in turns[0]["content"]
    assert '\\"a\\": 1' in turns[2]["content"]
    assert request().turns == [{"role": "user", "content": "hi"}]


def test_the_context_is_everything_but_the_last_question():
    one = request(**FULL)
    again = {**FULL, "messages": [*FULL["messages"][:-1], {"role": "user", "content": "how?"}]}
    assert one.last_question == "why?"
    assert request(**again).context_hash() == one.context_hash()
    assert request(**again, stream=True).context_hash() == one.context_hash()
    for change in ({"seed": 1}, {"n": 2}, {"model": "x"}, {"tools": None}, {"temperature": 1}):
        assert request(**{**again, **change}).context_hash() != one.context_hash(), change
    earlier = {**FULL, "messages": [{"role": "system", "content": "x"}, *FULL["messages"]]}
    assert request(**earlier).context_hash() != one.context_hash()
    assert request(messages=FULL["messages"][:4]).last_question is None


NESTED = {"type": "object"}
for _ in range(90):
    NESTED = {"type": "object", "properties": {"a": NESTED}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "tool call with"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "assistant"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "'tool' only"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content' is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "'input_audio' is not supported",
        ),
        ({"tool_choice": "required"}, "need tools"),
        ({"parallel_tool_calls": True}, "need tools"),
        ({"tools": [TOOL, TOOL]}, "same name"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "not among the tools",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"store": True}, "not kept for retrieval"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"metadata": {"a": "x" * 600}}, "metadata"),
        ({"n": 9}, "n:"),
        ({"functions": []}, "'functions'"),
    ],
)
def test_what_does_not_fit_is_said(fields, words):
    with pytest.raises(ApiError) as caught:
        request(**fields)
    assert caught.value.status == 400
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objct"}, "not a JSON schema"),
        ({"$ref": "http://example.com/s"}, "leaves the schema"),
        ({"allOf": [{"$dynamicRef": "other.json"}]}, "leaves the schema"),
        (NESTED, "nested deeper"),
        ({"description": "x" * 30_000}, "bytes is not taken"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema, words):
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    refusal = refusal_of(json.dumps({**GOOD, "response_format": wanted}).encode())
    assert refusal is not None
    assert words in refusal.message


@pytest.mark.parametrize(
    ("choice", "uses"), [(None, True), ("auto", True), ("none", False), ("required", True)]
)
def test_whether_a_tool_may_be_called(choice, uses):
    assert request(tools=[TOOL], tool_choice=choice).uses_tools is uses
    assert not request().uses_tools
