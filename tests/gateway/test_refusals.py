"""What a bad request gets: a status, a clear sentence in OpenAI's shape, and a record."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from factory.ledger.keys import create_key, list_keys, revoke

GOOD = {"model": "ladder", "messages": [{"role": "user", "content": "hi"}]}


def shape(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_without_a_valid_key_nothing_is_done_or_recorded(world):
    for header, code in (
        (b"", "missing_api_key"),
        (b"Basic abc", "missing_api_key"),
        (b"Bearer", "missing_api_key"),
        (b"Bearer sk-factory-wrong", "invalid_api_key"),
        (b"Bearer \xff\xfe", "invalid_api_key"),
    ):
        response = await world.ask(headers={"Authorization": header})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert shape(response)["code"] == code
    assert world.all_requests() == []


async def test_a_revoked_key_stops_working_within_a_second_or_two(world):
    assert (await world.ask()).status_code == 200
    (key,) = list_keys(world.ledger)
    revoke(world.ledger, key.key_id)
    async with asyncio.timeout(3):
        while (response := await world.ask()).status_code == 200:
            await asyncio.sleep(0.05)
    assert response.status_code == 401


async def test_a_new_key_works_at_once(world):
    secret, _ = create_key(world.ledger, world.settings, "support", ["cheap"])
    only = {"Authorization": f"Bearer {secret}"}
    assert (await world.ask(model="cheap", headers=only)).status_code == 200
    closed = await world.ask(model="ladder", headers=only)
    assert closed.status_code == 403
    assert shape(closed)["code"] == "endpoint_not_allowed"
    assert "cheap" in shape(closed)["message"]


async def test_another_teams_endpoint_is_closed(world):
    response = await world.ask(model="foreign")
    assert response.status_code == 403
    assert "research" not in response.text


async def test_an_unknown_model_lists_what_may_be_used(world):
    with pytest.raises(openai.NotFoundError) as caught:
        await world.client.chat.completions.create(model="gpt-9", messages=GOOD["messages"])
    assert caught.value.code == "model_not_found"
    assert "ladder, cheap, fresh, swift, secret" in caught.value.message
    (request,) = world.all_requests()
    assert (request.status, request.http_status, request.cost_nusd) == ("refused", 404, 0)
    assert request.team == "support"


WRONG_BODIES = [
    (b"", "invalid_json", "line 1 column 0"),
    (b'{"model": "ladder",}', "invalid_json", "line 1 column 20"),
    (b'{"model":\n nope}', "invalid_json", "line 2 column 3"),
    (b'{"model": "\xff"}', "invalid_json", "not valid JSON"),
    (b"[" * 5000, "invalid_json", "recursion"),
    (b"[]", "invalid_value", "object"),
    (b"{}", "missing_required_parameter", "model"),
    ({"functions": []}, "unsupported_parameter", "'functions'"),
    ({"tools": []}, "invalid_value", "tools:"),
    ({"n": 9}, "invalid_value", "n:"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"temperature": 3}, "invalid_value", "less than or equal to 2"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "invalid_value", "exclude each other"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "unsupported_parameter", "stream_options.x"),
    ({"top_logprobs": 3}, "invalid_value", "logprobs"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "missing_required_parameter", "tool_call"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "unsupported_content",
        "messages[0].content[0].type",
    ),
    ({"stop": list("abcde")}, "invalid_value", "at most 4 items"),
    ({"seed": 2**64}, "invalid_value", "seed"),
]


async def test_a_wrong_body_is_named_and_recorded(world):
    for body, code, words in WRONG_BODIES:
        content = body if isinstance(body, bytes) else json.dumps({**GOOD, **body}).encode()
        response = await world.http.post("/v1/chat/completions", content=content)
        assert response.status_code == 400
        error = shape(response)
        assert error["code"] == code, error
        assert words in error["message"], error
        assert error["type"] == "invalid_request_error"
        request, (charge,) = world.recorded(response)
        assert (request.status, request.http_status) == ("refused", 400)
        assert (charge.kind, charge.cost_nusd) == ("refusal", 0)
    assert not world.small.bodies


@pytest.mark.parametrize("declared", [True, False])
async def test_a_large_body_is_refused_whether_or_not_it_says_so(world, declared):
    async def pieces():
        for _ in range(30):
            yield b" " * 1000

    content = b" " * 30_000 if declared else pieces()
    response = await world.http.post("/v1/chat/completions", content=content)
    assert response.status_code == 413
    assert "20000 bytes" in shape(response)["message"]
    assert world.recorded(response)[0].http_status == 413


async def test_a_prompt_longer_than_the_context_is_told_the_numbers(world):
    response = await world.ask("word " * 70, model="cheap")
    error = shape(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "64" in error["message"]
    assert "70" in error["message"]
    tight = await world.ask("one two", model="cheap", max_tokens=63)
    assert "63" in shape(tight)["message"]
    assert (await world.ask("one two", model="cheap", max_tokens=62)).status_code == 200


async def test_unknown_urls_and_methods_keep_the_shape(world):
    assert shape(await world.http.get("/v1/nothing"))["code"] == "unknown_url"
    response = await world.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert "POST" in response.headers["allow"]
    assert shape(response)["code"] == "method_not_allowed"


async def test_health_and_readiness(world):
    assert (await world.http.get("/healthz")).json() == {"status": "ok"}
    assert (await world.http.get("/readyz")).json() == {
        "status": "ready",
        "problems": {},
        "asleep": [],
    }
    world.serving["cheap"] = {}
    response = await world.http.get("/readyz")
    assert response.status_code == 503


async def test_a_dead_engine_is_not_ready_where_nothing_else_answers(world):
    await world.small.stop()
    response = await world.http.get("/readyz")
    assert response.status_code == 503
    assert "cheap/tier 1" in response.json()["problems"]


async def test_a_dead_ledger_is_not_ready(world, tmp_path):
    (tmp_path / "ledger.db").unlink()
    (tmp_path / "ledger.db").mkdir()
    world.ledger.close()
    response = await world.http.get("/readyz")
    assert response.status_code == 503
    assert "ledger" in response.json()["problems"]
    asked = await world.ask()
    assert asked.status_code == 503
    assert "retry-after" in asked.headers
    assert "ledger" in shape(asked)["message"]


async def test_the_openapi_document_describes_the_routes(world):
    document = (await world.http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/vector_stores",
        "/v1/vector_stores/{vector_store_id}",
        "/v1/vector_stores/{vector_store_id}/files",
        "/v1/vector_stores/{vector_store_id}/files/{file_id}",
        "/v1/vector_stores/{vector_store_id}/search",
        "/v1/models",
        "/v1/outcomes",
        "/v1/reviews",
        "/v1/reviews/{review_id}",
        "/v1/requests/{request_id}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    chat = document["paths"]["/v1/chat/completions"]["post"]
    fields = chat["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"model", "messages", "stream", "temperature"} <= set(fields)
    assert chat["security"] == [{"HTTPBearer": []}]
    assert {"200", "202", "400", "401", "403", "404", "413", "429", "502", "503"} == set(
        chat["responses"]
    )
    assert "$ref" not in json.dumps(chat)


async def test_many_at_once_are_all_charged_once(world):
    responses = await asyncio.gather(*(world.ask(f"question {i % 7}") for i in range(60)))
    assert {response.status_code for response in responses} == {200}
    recorded = world.all_requests()
    assert len({request.request_id for request in recorded}) == len(recorded) == 60
    shown = sum(int(r.headers["x-factory-cost-usd"].replace(".", "")) for r in responses)
    assert shown == sum(request.cost_nusd for request in recorded)


async def test_a_key_that_only_reviews_may_not_ask(world):
    reviewer = world.key(roles=["reviewer"])
    refused = await world.ask(headers=reviewer)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_missing")
    assert (await world.http.get("/v1/reviews", headers=reviewer)).status_code == 200
