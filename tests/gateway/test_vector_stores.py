"""Vector stores over HTTP: found by meaning, cached until a change, charged, a team's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
from conftest import CONFIG, made

from factory.config import Budget
from factory.ledger import audit
from factory.ledger.keys import list_keys

GUARDED = CONFIG.replace(
    "{team: support, task: embed, tiers: [0, 1]}",
    "{team: support, task: embed, tiers: [0, 1], guard: {input: ["
    "{filter: banned, patterns: [rival], act: redact}, "
    "{filter: banned, patterns: [acme], act: review}]}}",
)


async def filled(world, **files):
    made = await world.http.post("/v1/vector_stores", json={"name": "handbook"})
    assert made.status_code == 200, made.text
    place = f"/v1/vector_stores/{made.json()['id']}"
    for name, text in (files or {"a": "aaaa aa", "b": "bbbb", "c": "abc abc"}).items():
        body = {"file_id": name, "text": text, "attributes": {"letter": name, "size": len(text)}}
        added = await world.http.post(f"{place}/files", json=body)
        assert added.status_code == 200, added.text
    return place


async def find(world, place, query="aaa", headers=None, **fields):
    body = {"query": query, **fields}
    return await world.http.post(f"{place}/search", json=body, headers=headers or {})


def texts(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [row["content"][0]["text"] for row in reply.json()["data"]]


async def test_the_openai_client_makes_fills_searches_and_deletes_a_store(world):
    stores = world.client.vector_stores
    store = await stores.create(name="handbook", metadata={"owner": "ops"})
    assert store.file_counts.total == 0
    file = await stores.files.create(
        store.id, file_id="rules.md", attributes={"lang": "en"}, extra_body={"text": "aaa bbb"}
    )
    assert (file.id, file.status, file.attributes) == ("rules.md", "completed", {"lang": "en"})
    found = await stores.search(store.id, query="aa", max_num_results=3)
    assert [(one.file_id, one.content[0].text) for one in found.data] == [("rules.md", "aaa bbb")]
    assert 0 < found.data[0].score <= 1
    assert [one.id async for one in await stores.files.list(store.id)] == ["rules.md"]
    assert (await stores.files.retrieve("rules.md", vector_store_id=store.id)).id == "rules.md"
    listed = [one async for one in await stores.list()]
    assert [(one.name, one.file_counts.total) for one in listed] == [("handbook", 1)]
    assert (await stores.files.delete("rules.md", vector_store_id=store.id)).deleted
    assert (await stores.search(store.id, query="aa")).data == []
    assert (await stores.delete(store.id)).deleted
    assert [one async for one in await stores.list()] == []


async def test_the_same_search_is_free_until_the_store_changes(world):
    place = await filled(world)
    first = await find(world, place)
    assert texts(first)[0] == "aaaa aa"
    assert first.headers["x-factory-cache"] == "miss"
    again = await find(world, place)
    assert (again.headers["x-factory-cache"], again.json()) == ("hit", first.json())
    request, charges = world.recorded(again)
    assert (request.tier, request.cost_nusd, charges[0].kind) == (0, 0, "cache")
    assert world.recorded(first)[0].cost_nusd == 10 * request.prompt_tokens
    for change in (
        world.http.post(f"{place}/files", json={"file_id": "d", "text": "aaa"}),
        world.http.post(f"{place}/files", json={"file_id": "a", "text": "hh"}),
        world.http.delete(f"{place}/files/d"),
    ):
        assert (await change).status_code == 200
        found = await find(world, place)
        assert found.headers["x-factory-cache"] == "miss"
        # Its embedding is known, so only the search is made anew.
        assert world.recorded(found)[0].cost_nusd == 0
        assert (await find(world, place)).headers["x-factory-cache"] == "hit"
    other = await find(world, place, max_num_results=1)
    assert other.headers["x-factory-cache"] == "miss"
    unkept = await find(world, place, headers={"Cache-Control": "no-store"})
    assert unkept.headers["x-factory-cache"] == "off"
    assert b"factory_vector_search_seconds_count" in (await world.http.get("/metrics")).content


async def test_filters_thresholds_and_several_questions_bound_what_is_found(world):
    place = await filled(world)
    letter = {"type": "in", "key": "letter", "value": ["b", "c"]}
    large = {"type": "gt", "key": "size", "value": 4}
    assert set(texts(await find(world, place, filters=letter))) == {"bbbb", "abc abc"}
    both = {"type": "and", "filters": [letter, {"type": "or", "filters": [large]}]}
    assert texts(await find(world, place, filters=both)) == ["abc abc"]
    near = await find(world, place, ranking_options={"score_threshold": 0.9})
    assert texts(near) == ["aaaa aa"]
    two = await find(world, place, ["aaa", "bbb"], max_num_results=2)
    assert sorted(texts(two)) == ["aaaa aa", "bbbb"]


async def test_a_store_is_closed_to_other_teams_and_to_keys_without_its_endpoint(world):
    place = await filled(world)
    for headers in (world.key("research"), world.key(endpoints=["cheap"])):
        for method, path in (
            ("GET", place),
            ("DELETE", place),
            ("GET", f"{place}/files"),
            ("DELETE", f"{place}/files/a"),
        ):
            reply = await world.http.request(method, path, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (
                404,
                "vector_store_not_found",
            )
        assert (await find(world, place, headers=headers)).status_code == 404
        listed = await world.http.get("/v1/vector_stores", headers=headers)
        assert listed.json()["data"] == []
    reviewer = world.key(roles=["reviewer"])
    assert (await world.http.get(place, headers=reviewer)).status_code == 403
    assert (await find(world, place)).status_code == 200


async def test_a_store_of_another_encoder_is_refused_and_an_encoder_that_fails_makes_none(world):
    place = await filled(world)
    world.serving["search"][1] = replace(world.serving["search"][1], version="2")
    reply = await find(world, place)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "embedder_changed")
    assert "make a new store" in reply.json()["error"]["message"]
    assert (await world.http.post("/v1/vector_stores", json={"name": "fail"})).status_code == 503
    assert len((await world.http.get("/v1/vector_stores")).json()["data"]) == 1


async def test_the_guard_redacts_before_anything_is_kept_and_a_person_may_let_pass(folder):
    async with made(folder, GUARDED) as world:
        place = await filled(world, a="aaa of a rival")
        assert texts(await find(world, place)) == ["aaa of a <BANNED>"]
        held = await world.http.post(f"{place}/files", json={"file_id": "r", "text": "acme aaa"})
        assert held.status_code == 202
        review = held.headers["location"]
        assert len(texts(await find(world, place))) == 1
        reviewer = world.key(roles=["reviewer"])
        decided = await world.http.post(review, json={"decision": "approve"}, headers=reviewer)
        assert decided.status_code == 200, decided.text
        done = (await world.http.get(review)).json()
        assert (done["status"], done["result"]["body"]["id"]) == ("done", "r")
        assert "acme aaa" in texts(await find(world, place))


async def test_a_file_may_have_more_chunks_than_a_prompt_may_have_messages(folder):
    config = GUARDED + "gateway: {max_body_bytes: 200000}\n"
    async with made(folder, config.replace("gateway: {max_body_bytes: 20000}\n", "")) as world:
        place = await filled(world, a="aaa")
        chunks = ["bbb"] * 299 + ["of a rival"]
        added = await world.http.post(f"{place}/files", json={"file_id": "b", "chunks": chunks})
        assert added.json()["chunks"] == 300, added.text
        found = await find(world, place, "of a rival", max_num_results=50)
        assert "of a <BANNED>" in texts(found)


async def test_stores_count_against_budgets_and_rates_and_are_audited(folder):
    config = CONFIG.replace("{support: {}", "{support: {limits: {requests_per_minute: 5}}")
    async with made(folder, config) as world:
        place = await filled(world, a="aaa", b="bbb")
        assert (await find(world, place)).status_code == 200
        assert (await find(world, place)).status_code == 200
        assert (await find(world, place)).status_code == 429
        poor = world.key(budget=Budget(daily_usd="0.00000001"))
        reply = await find(world, place, "something else", headers=poor)
        assert reply.status_code == 429
        assert (await world.http.delete(place)).status_code == 200
        (event,) = audit.events(world.ledger, action="vector_store")
        assert (event.action, event.subject) == ("vector_store.delete", place.rpartition("/")[2])
        assert event.actor in {key.key_id for key in list_keys(world.ledger, "support")}
        reasons = [one.reasons[-1] for one in world.all_requests() if one.status == "ok"]
        assert any(one.startswith("made vs_") for one in reasons)


WRONG = [
    ("files", {"file_id": "x"}, 400, "either `text` or `chunks`"),
    ("files", {"text": " \n "}, 400, "white space"),
    ("files", {"text": "x", "file_id": "x' OR 1=1"}, 400, "file_id"),
    ("files", {"chunks": ["x " * 1000]}, 400, "chunks[0]"),
    ("files", {"text": "x" * 15_000, "chunking_strategy": {"type": "auto"}}, 200, ""),
    (
        "files",
        {
            "text": "x",
            "chunking_strategy": {
                "type": "static",
                "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51},
            },
        },
        400,
        "half",
    ),
    (
        "files",
        {
            "text": "x",
            "chunking_strategy": {
                "type": "static",
                "static": {"max_chunk_size_tokens": 4000, "chunk_overlap_tokens": 0},
            },
        },
        400,
        "256 tokens",
    ),
    ("search", {"query": ""}, 400, "query"),
    ("search", {"query": "a", "rewrite_query": True}, 400, "rewrite_query"),
    ("search", {"query": "a", "filters": {"type": "gt", "key": "k", "value": "v"}}, 400, "num"),
    ("search", {"query": "a", "filters": {"type": "in", "key": "k", "value": 1}}, 400, "list"),
    ("search", {"query": "fail"}, 503, "encoder is down"),
    ("files?limit=0", None, 400, "limit"),
    ("files?order=up", None, 400, "order"),
    ("files?after=nobody", None, 400, "after"),
    ("files/nobody", None, 404, "no file 'nobody'"),
]
"""Path, body, status and words of the answer."""


async def test_what_cannot_be_is_said_in_one_sentence(world):
    place = await filled(world, a="aaa")
    for path, body, status, words in WRONG:
        if body is None:
            reply = await world.http.get(f"{place}/{path}")
        else:
            reply = await world.http.post(f"{place}/{path}", json=body)
        assert reply.status_code == status, (path, body, reply.text)
        assert words in reply.text, (path, body)


async def test_listings_have_pages(world):
    place = await filled(world, a="aaa", b="bbb", c="ccc")
    one = (await world.http.get(f"{place}/files?limit=2&order=asc")).json()
    assert ([row["id"] for row in one["data"]], one["has_more"]) == (["a", "b"], True)
    two = (await world.http.get(f"{place}/files?limit=2&order=asc&after={one['last_id']}")).json()
    assert ([row["id"] for row in two["data"]], two["has_more"]) == (["c"], False)


async def test_two_clients_that_fill_a_store_at_once_lose_nothing(world):
    place = await filled(world, a="aaa")
    bodies = [{"file_id": f"f{n}", "chunks": ["a" * n, "b" * n]} for n in range(1, 9)]
    adding = (world.http.post(f"{place}/files", json=body) for body in bodies)
    replies = await asyncio.gather(*adding)
    assert {reply.status_code for reply in replies} == {200}
    assert (await world.http.get(place)).json()["file_counts"]["total"] == 9


async def test_the_same_search_by_several_at_once_is_made_and_paid_once(world):
    place = await filled(world, a="aaa", b="bbb")
    replies = await asyncio.gather(*(find(world, place, "ab ab") for _ in range(6)))
    assert {tuple(texts(reply)) for reply in replies} == {tuple(texts(replies[0]))}
    ways = sorted(reply.headers["x-factory-cache"] for reply in replies)
    assert ways.count("miss") == 1
    assert set(ways) <= {"miss", "shared", "hit"}
    costs = [world.recorded(reply)[0].cost_nusd for reply in replies]
    assert sorted(costs)[:5] == [0] * 5
    assert sum(costs) > 0
    failed = await asyncio.gather(*(find(world, place, "fail") for _ in range(3)))
    assert {reply.status_code for reply in failed} == {503}
    assert len({reply.headers["x-factory-request-id"] for reply in failed}) == 3
    assert all(world.recorded(reply)[0].status == "error" for reply in failed)
