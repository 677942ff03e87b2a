"""Answers in their one plain form: whole, gathered, kept as JSON, replayed."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.gateway.answers import Answer, Choice, Gathering, ToolCall, whole
from factory.gateway.engine import EngineError
from factory.gateway.replies import Stamp, relayed, render

STAMP = Stamp("chatcmpl-1", 7)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ENTRIES = st.builds(
    lambda token, logprob, tops: {
        "token": token,
        "logprob": logprob,
        "bytes": list(token.encode()),
        "top_logprobs": [
            {"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in tops.items()
        ],
    },
    TEXT,
    st.floats(-50, 0),
    st.dictionaries(TEXT, st.floats(-50, 0), max_size=2),
)
LOGPROBS = st.none() | st.lists(ENTRIES, min_size=1, max_size=3).map(tuple)
CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple)
CHATS = st.builds(
    Choice,
    text=TEXT,
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
    logprobs=LOGPROBS,
    tool_calls=CALLS,
    refusal=st.none() | TEXT.filter(bool),
)
TEXTS = st.builds(
    Choice, text=TEXT, finish_reason=st.sampled_from(["stop", "length"]), logprobs=LOGPROBS
)


def answers(choices: st.SearchStrategy[Choice]) -> st.SearchStrategy[Answer]:
    some = st.lists(choices, min_size=1, max_size=3).map(tuple)
    return st.builds(Answer, some, st.integers(0, 99), st.integers(0, 99), st.booleans())


ROUTED = st.tuples(st.just("chat"), answers(CHATS)) | st.tuples(
    st.just("completions"), answers(TEXTS)
)


@settings(deadline=None)
@given(answers(CHATS))
def test_an_answer_survives_json(answer):
    assert Answer.from_dict(json.loads(json.dumps(answer.as_dict()))) == answer


@settings(deadline=None)
@given(ROUTED)
def test_a_rendered_answer_reads_back_as_the_answer(routed):
    route, answer = routed
    rendered = render(answer, "small@1", True, route)
    body = json.loads(rendered.completion(STAMP))
    assert body["model"] == "small@1"
    assert replace(whole(body, 0), estimated=answer.estimated) == answer


@settings(deadline=None)
@given(ROUTED)
def test_a_replayed_stream_gathers_to_the_answer(routed):
    route, answer = routed
    stream = render(answer, "small@1", True, route).replay(STAMP, b"{}", include_usage=True)
    gathering = Gathering(expected=len(answer.choices))
    for line in stream.decode().split("\n\n"):
        if line.startswith("data: {"):
            assert gathering.finish_reason is None or '"choices":[]' in line
            gathering.add(json.loads(line.removeprefix("data: ")))
    assert gathering.finish_reason == answer.finish_reason
    assert replace(gathering.answer(0), estimated=answer.estimated) == answer


@settings(deadline=None)
@given(ROUTED)
def test_a_relayed_chunk_says_the_same_under_its_own_name(routed):
    route, answer = routed
    chunks = render(answer, "upstream", True, route).chunks
    for tail in chunks:
        chunk = json.loads(b"{" + tail)
        event = relayed(STAMP, "small@1", chunk, True)
        if event:
            sent = json.loads(event.removeprefix(b"data: "))
            assert (sent["id"], sent["model"]) == ("chatcmpl-1", "small@1")
            assert sent["object"] == chunk["object"]
            assert sent["choices"][0]["finish_reason"] == chunk["choices"][0]["finish_reason"]
            hidden = json.loads(relayed(STAMP, "m", chunk, False).removeprefix(b"data: "))
            assert hidden["choices"][0]["logprobs"] is None


@settings(deadline=None)
@given(answers(CHATS))
def test_texts_can_be_replaced_and_take_their_log_probabilities_along(answer):
    assert answer.with_texts(answer.texts) == answer
    changed = answer.with_texts([text + "!" for text in answer.texts])
    assert changed.texts == tuple(text + "!" for text in answer.texts)
    assert all(choice.logprobs is None for choice in changed.choices)
    assert changed.completion_tokens == answer.completion_tokens
    with pytest.raises(ValueError, match="texts, not"):
        answer.with_texts([*answer.texts, ""])


KEYS = [
    *("choices", "message", "delta", "text", "content", "tool_calls", "function", "index"),
    *("arguments", "logprobs", "usage", "prompt_tokens", "tokens", "finish_reason"),
]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.fixed_dictionaries({"choices": JUNK}, optional={"usage": JUNK}))
def test_whatever_an_engine_sends_is_an_answer_that_can_be_sent_or_its_error(reply):
    for read in (lambda: whole(reply, 1), lambda: gathered(reply)):
        answer = None
        with contextlib.suppress(EngineError):
            answer = read()
        if answer is not None:
            json.loads(render(answer, "m", True).completion(STAMP))


def gathered(chunk) -> Answer:
    gathering = Gathering()
    gathering.add(chunk)
    return gathering.answer(1)


def test_a_stream_has_ended_when_all_its_choices_have():
    gathering = Gathering(expected=2)
    for index in (0, 1):
        assert gathering.finish_reason is None
        choice = {"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}
        gathering.add({"choices": [choice]})
    assert gathering.finish_reason == "stop"


def test_without_usage_the_tokens_of_all_choices_and_calls_are_estimated():
    gathering = Gathering(expected=2)
    gathering.add({"choices": [{"index": 0, "delta": {"content": "four"}}]})
    call = {"index": 0, "function": {"name": "f", "arguments": "x" * 15}}
    gathering.add({"choices": [{"index": 1, "delta": {"tool_calls": [call]}}]})
    assert gathering.parts == ["four", "f" + "x" * 15]
    answer = gathering.answer(prompt_tokens=3)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.estimated) == (3, 5, True)


@pytest.mark.parametrize("kept", [{}, {"choices": []}, {"choices": [{}]}, {"choices": 5}])
def test_something_else_is_not_a_kept_answer(kept):
    fields = {"prompt_tokens": 1, "completion_tokens": 1, "estimated": False}
    with pytest.raises(ValueError, match="not a kept answer"):
        Answer.from_dict(fields | kept)
