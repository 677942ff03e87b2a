"""What the load calls an answer: nothing truncated, nothing foreign."""

from __future__ import annotations

import json

import pytest

from benchmarks.mixed_load import MixedLoad, Wrong, _streamed, _whole

DELTA = {"choices": [{"delta": {"content": "shutil"}, "finish_reason": None}]}
STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def stream(*chunks: dict[str, object] | str) -> str:
    lines = (chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks)
    return "".join(f"data: {line}\n\n" for line in lines)


def test_a_complete_stream_and_one_that_says_that_it_broke_off() -> None:
    assert _streamed(stream(DELTA, STOP, "[DONE]")) == "shutil"
    assert _streamed(stream(DELTA, {"error": {"message": "the engine died"}})) is None


@pytest.mark.parametrize("raw", ["", stream(DELTA), stream(DELTA, "[DONE]"), stream(DELTA, STOP)])
def test_a_truncated_stream_is_wrong(raw: str) -> None:
    with pytest.raises(Wrong):
        _streamed(raw)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        '{"choices": []}',
        '{"choices": [{"finish_reason": null, "message": {"content": "a"}}], "usage": {}}',
        '{"choices": [{"finish_reason": "stop", "message": {"content": ""}}],'
        ' "usage": {"completion_tokens": 1}}',
    ],
)
def test_half_an_answer_is_wrong(reply: str) -> None:
    with pytest.raises(Wrong):
        _whole(reply)


def test_a_hit_must_say_what_was_said_before() -> None:
    load = MixedLoad("http://127.0.0.1:1", ["k"], 1)
    body = {"model": "helpdesk", "messages": [{"content": "q"}]}
    load._compare(body, "", "shutil")
    load._compare(body, "hit", "shutil")
    with pytest.raises(Wrong):
        load._compare(body, "hit", "asyncio")
