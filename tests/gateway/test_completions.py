"""Text completions: what is taken, what is refused, and what engines and clients get."""

from __future__ import annotations

import json

import pytest
from openai.types import Completion
from provider_server import Play, Provider
from pydantic import SecretStr

from factory.gateway.answers import Gathering, whole
from factory.gateway.completions import parse_completion
from factory.gateway.engine import EngineError, with_logprobs
from factory.gateway.errors import ApiError
from factory.gateway.provider import OpenAIEngine
from factory.gateway.replies import Stamp, render


def request(**fields):
    return parse_completion(json.dumps({"model": "m", "prompt": "one two", **fields}).encode())


@pytest.fixture
async def provider():
    provider = Provider()
    engine = OpenAIEngine(provider.base_url, "some-model", SecretStr("none"))
    yield provider, engine
    await engine.close()
    await provider.stop()


def test_a_list_of_one_prompt_is_that_prompt():
    assert request(prompt=["one two"]).canonical() == request().canonical()
    assert request(prompt=["one two"]).engine_body() == {"prompt": "one two", "max_tokens": 16}


def test_the_default_length_is_openais():
    assert request().limit == 16
    assert request(max_tokens=16).canonical() == request().canonical()
    assert request(max_tokens=17).canonical() != request().canonical()


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"prompt": [1, 2]}, "unsupported_prompt", "token arrays are not supported"),
        ({"prompt": [[1], [2]]}, "unsupported_prompt", "token arrays are not supported"),
        ({"prompt": ["a", "b"]}, "unsupported_prompt", "a request for each"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"echo": True}, "unsupported_value", "echo"),
        ({"suffix": "end"}, "unsupported_value", "suffix"),
        ({"best_of": 3}, "invalid_value", "best_of"),
        ({"logprobs": 6}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_value", "logprobs"),
        ({"messages": []}, "unsupported_parameter", "messages"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream"),
    ],
)
def test_what_is_not_done_is_refused_by_name(fields, code, words):
    with pytest.raises(ApiError) as caught:
        request(**fields)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert words in caught.value.message


def test_what_means_nothing_is_taken():
    assert request(echo=False, suffix=None, best_of=2, n=2).engine_body()["n"] == 2


def test_a_guard_can_look_at_the_prompt_and_change_it():
    changed = request().with_texts(["three"])
    assert changed.texts == ("three",)
    assert changed.engine_body()["prompt"] == "three"
    assert changed.context_hash() != request().context_hash()
    assert request().last_question is None


def test_an_answer_is_judged_without_asking_for_more_than_the_client_did():
    assert with_logprobs(request().engine_body(), "completions")["logprobs"] == 0
    assert with_logprobs(request(logprobs=3).engine_body(), "completions")["logprobs"] == 3


async def test_a_provider_completes_whole_and_streamed(provider):
    server, engine = provider
    asked = request(n=2, logprobs=1, temperature=0)
    answer = whole(await engine.answer(asked.engine_body(), asked.route), 0)
    assert [choice.text for choice in answer.choices] == ["json it is"] * 2
    assert answer.completion_tokens == 6
    assert answer.token_logprobs == [-0.01] * 6
    assert server.bodies[0]["model"] == "some-model"

    gathering = Gathering(expected=2)
    async for chunk in engine.stream(asked.engine_body(), asked.route):
        gathering.add(chunk)
    assert gathering.finish_reason == "stop"
    assert gathering.answer(0) == answer


async def test_a_provider_that_cannot_is_an_error(provider):
    server, engine = provider
    server.script.append(Play(status=500))
    with pytest.raises(EngineError):
        await engine.answer(request().engine_body(), "completions")


async def test_a_rendered_completion_is_what_openai_sends(provider):
    _, engine = provider
    answer = whole(await engine.answer(request(logprobs=1).engine_body(), "completions"), 0)
    body = json.loads(render(answer, "m@1", True, "completions").completion(Stamp("cmpl-1", 7)))
    assert Completion.model_validate(body, strict=True).usage.total_tokens == 13
    assert (body["id"], body["object"], body["model"]) == ("cmpl-1", "text_completion", "m@1")
    (choice,) = body["choices"]
    assert choice["text"] == "json it is"
    assert choice["logprobs"] == {
        "tokens": ["json", " it", " is"],
        "token_logprobs": [-0.01] * 3,
        "top_logprobs": [{"json": -0.01}, {" it": -0.01}, {" is": -0.01}],
        "text_offset": [0, 4, 7],
    }
