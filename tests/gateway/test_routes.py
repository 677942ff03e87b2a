"""The routes beside chat: completions, embeddings, pinned models, outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import World

HELLO = {"model": "cheap", "prompt": "import "}


async def test_completions_go_the_same_way(world: World):
    whole = await world.client.completions.create(**HELLO)
    assert whole.id.startswith("cmpl-")
    assert whole.choices[0].text == "json it is"
    again = await world.http.post("/v1/completions", json=HELLO)
    assert again.headers["x-factory-cache"] == "hit"
    stream = await world.client.completions.create(**HELLO, stream=True, seed=7)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "json it is"
    assert sum(request.cost_nusd > 0 for request in world.all_requests()) == 2


async def test_embeddings_are_charged_once_and_then_free(world: World):
    asked = {"model": "search", "input": ["bad cafe", "hedge"]}
    first = await world.client.embeddings.create(**asked)
    vectors = np.array([one.embedding for one in first.data])
    assert vectors.shape == (2, 8)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert first.usage.prompt_tokens == 3
    reply = await world.http.post(
        "/v1/embeddings", json={**asked, "input": ["hedge", "bad cafe", "fad"]}
    )
    assert reply.headers["x-factory-cache"] == "miss"
    request, (charge,) = world.recorded(reply)
    assert (charge.kind, charge.prompt_tokens) == ("embedding", 1)
    assert request.prompt_tokens == 4
    again = await world.http.post("/v1/embeddings", json=asked)
    assert (again.headers["x-factory-cache"], again.headers["x-factory-tier"]) == ("hit", "0")
    assert world.recorded(again)[0].cost_nusd == 0


async def test_embeddings_fail_as_a_chat_does(world: World):
    down = await world.http.post("/v1/embeddings", json={"model": "search", "input": "fail"})
    assert (down.status_code, down.json()["error"]["code"]) == (503, "service_unavailable")
    assert world.recorded(down)[0].status == "error"
    wrong = await world.http.post("/v1/embeddings", json={"model": "cheap", "input": "a"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "wrong_route")
    talk = await world.ask(model="search")
    assert (talk.status_code, talk.json()["error"]["code"]) == (400, "wrong_route")


async def test_a_model_may_be_pinned_where_the_team_has_it(world: World):
    reply = await world.ask(model="premium")
    assert reply.headers["x-factory-tier"] == "3"
    assert not world.small.bodies
    request, _ = world.recorded(reply)
    assert request.endpoint == "ladder"
    stranger = await world.ask("x", model="premium", headers=world.key("research"))
    assert stranger.status_code == 403
    assert (await world.ask("x", model="small", headers=world.key("research"))).status_code == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 200),
        ({"request_id": "chatcmpl-unknown"}, 404),
        ({"human_minutes": -1}, 400),
        ({"success": "yes"}, 400),
    ],
)
async def test_an_outcome_is_kept_beside_its_request(world: World, change, status):
    asked = await world.ask(model="cheap")
    said = {
        "request_id": asked.headers["x-factory-request-id"],
        "success": True,
        "human_minutes": 1.5,
        **change,
    }
    reply = await world.http.post("/v1/outcomes", json=said)
    assert reply.status_code == status, reply.text
    if status == 200:
        assert reply.json()["human_minutes"] == 1.5
        stranger = await world.http.post("/v1/outcomes", json=said, headers=world.key("research"))
        assert stranger.status_code == 404
