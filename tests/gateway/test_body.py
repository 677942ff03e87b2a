"""The request body: whatever the bytes, either a checked request or a 400 that names the reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
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


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_request_or_a_400(raw):
    refusal = refusal_of(raw)
    assert refusal is None or (refusal.status == 400 and refusal.message)


@given(st.sampled_from(sorted(ChatRequest.model_fields)), JSON_VALUES)
def test_any_value_in_any_field_ends_in_a_request_or_a_400(field, value):
    refusal = refusal_of(json.dumps({**GOOD, field: value}).encode())
    assert refusal is None or (refusal.status == 400 and refusal.message)


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
