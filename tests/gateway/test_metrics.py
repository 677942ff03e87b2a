"""`GET /metrics` of a real gateway, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from conftest import CONFIG, World, made
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from provider_server import Play

from factory.gateway import metrics as room
from factory.gateway.metrics import on_loopback
from factory.ledger.errors import LedgerError
from factory.telemetry.engines import EngineState


async def scraped(world: World, **headers: Any) -> dict[str, Metric]:
    answer = await world.http.get("/metrics", **headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {one.name: one for one in text_string_to_metric_families(answer.text)}


def value(found: Mapping[str, Metric], sample: str, **labels: str) -> float:
    """Sum over the samples of this name with these labels."""
    return sum(
        one.value
        for family in found.values()
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    )


async def test_a_request_is_counted_once_with_its_labels(world):
    await world.ask("which module?")
    await world.ask("which module?")
    found = await scraped(world)
    by_model = {"endpoint": "ladder", "tier": "1", "model": "small", "status": "200"}
    assert value(found, "factory_requests_total", cache="miss", **by_model) == 1
    assert value(found, "factory_requests_total", cache="hit", tier="0", model="small") == 1
    assert value(found, "factory_requests_total") == 2
    for tier in ("0", "1"):
        name = "factory_request_duration_seconds_count"
        assert value(found, name, endpoint="ladder", tier=tier) == 1
    charged = [world.ledger.request(one.request_id) for one in world.all_requests()]
    cost = sum(request.cost_nusd for request, _ in charged)
    assert value(found, "factory_cost_nusd_total", team="support", endpoint="ladder") == cost > 0
    request, _ = charged[0]
    assert value(found, "factory_tokens_total", kind="prompt") == request.prompt_tokens
    assert value(found, "factory_tokens_total", kind="saved_prompt") == request.prompt_tokens
    assert value(found, "factory_tokens_total", kind="completion") == request.completion_tokens


async def test_what_is_refused_or_fails_is_counted_by_its_status(world):
    for n in range(3):
        await world.ask(model=f"no-such-{n}")
    world.small.default = Play(status=500)
    failed = await world.ask(model="cheap")
    found = await scraped(world)
    assert value(found, "factory_requests_total", status="404") == 3
    assert value(found, "factory_requests_total", endpoint="unknown", model="none") == 3
    status = str(failed.status_code)
    assert failed.status_code >= 500
    assert value(found, "factory_requests_total", endpoint="cheap", status=status) == 1
    assert value(found, "factory_request_duration_seconds_count") == 0
    endpoints = {one.labels["endpoint"] for one in found["factory_requests"].samples}
    assert endpoints == {"unknown", "cheap"}


async def test_a_withheld_answer_counts_as_the_503_that_its_client_got(world, monkeypatch):
    async def lost(*_: Any) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(world.writer, "record", lost)
    assert (await world.ask()).status_code == 503
    monkeypatch.undo()
    found = await scraped(world)
    assert value(found, "factory_requests_total") == 1
    assert value(found, "factory_requests_total", status="503") == 1
    assert value(found, "factory_cost_nusd_total") == 0


async def test_streams_are_timed_to_their_first_part(world):
    async with world.http.stream(
        "POST",
        "/v1/chat/completions",
        json={
            "model": "fresh",
            "stream": True,
            "messages": [{"role": "user", "content": "prove that it is so"}],
        },
    ) as stream:
        assert stream.status_code == 200
        async for _ in stream.aiter_lines():
            pass
    found = await scraped(world)
    name = "factory_time_to_first_token_seconds"
    assert value(found, f"{name}_count", endpoint="fresh") == 1
    whole = value(found, "factory_request_duration_seconds_sum", endpoint="fresh")
    assert 0 < value(found, f"{name}_sum", endpoint="fresh") <= whole
    assert value(found, "factory_time_to_first_token_target_seconds", endpoint="swift") == 0.02


async def test_the_state_of_the_moment_is_shown(folder):
    budget = "teams: {support: {budget: {daily_usd: 2}}, research: {}}"
    async with made(folder, CONFIG.replace("teams: {support: {}, research: {}}", budget)) as world:
        found = await scraped(world)
    classes = {one.labels["class"]: one.value for one in found["factory_requests_waiting"].samples}
    assert classes == {"production": 0, "internal": 0, "batch": 0}
    left = found["factory_budget_remaining_ratio"].samples
    assert [(one.labels, one.value) for one in left] == [
        ({"scope": "team:support", "window": "day"}, 1.0)
    ]
    assert value(found, "factory_ledger_up") == 1
    waits = {
        one.labels["team"]: one.value for one in found["factory_job_queue_wait_seconds"].samples
    }
    assert waits == {"support": 0, "research": 0}


async def test_a_scrape_shows_what_sleeps_and_wakes_nothing(world):
    class Sleeping:
        asleep = True

        async def wake(self) -> None:
            raise AssertionError("a scrape must not wake")

    # The same model is awake on the other ladders.
    world.serving["cheap"][1] = replace(world.serving["cheap"][1], sleeper=Sleeping())
    found = await scraped(world)
    assert [one.labels for one in found["factory_model_asleep"].samples] == [{"model": "small"}]
    assert value(found, "factory_model_asleep", model="small") == 1


async def test_engines_report_under_vllms_names(world, monkeypatch):
    async def engines() -> dict[str, EngineState]:
        return {"engine-small": EngineState(replicas=2, running=3, waiting=1, kv_cache_usage=0.25)}

    monkeypatch.setattr(world.gateway._metrics, "_engines", engines)
    found = await scraped(world)
    assert value(found, "vllm:num_requests_running", deployment="engine-small") == 3
    assert value(found, "vllm:num_requests_waiting", deployment="engine-small") == 1
    assert value(found, "vllm:kv_cache_usage_perc", deployment="engine-small") == 0.25


async def test_a_ledger_that_hangs_holds_up_one_thread_and_no_scrape(world, monkeypatch):
    let_go, asked = threading.Event(), []

    def hang(*_: Any) -> None:
        asked.append(1)
        let_go.wait(30)
        raise LedgerError("the database does not answer")

    monkeypatch.setattr(room, "PATIENCE_S", 0.01)
    monkeypatch.setattr(room.books, "read", hang)
    found = await asyncio.gather(scraped(world), scraped(world), scraped(world))
    let_go.set()
    assert [value(one, "factory_ledger_up") for one in found] == [0, 0, 0]
    assert asked == [1]
    assert not found[0]["factory_budget_remaining_ratio"].samples


async def test_beyond_loopback_a_key_of_its_own_role_is_asked_for(folder):
    beyond = CONFIG.replace("gateway: {", "gateway: {host: 0.0.0.0, ")
    async with made(folder, beyond) as world:
        assert (await world.http.get("/metrics", headers={"Authorization": ""})).status_code == 401
        refused = await world.http.get("/metrics")
        assert refused.status_code == 403
        assert "'metrics'" in refused.json()["error"]["message"]
        prometheus = world.key(roles=["metrics"])
        assert await scraped(world, headers=prometheus)
        assert (await world.ask(headers=prometheus)).status_code == 403
    async with made(folder) as world:
        assert await scraped(world, headers={"Authorization": ""})


async def test_no_secret_and_no_text_of_a_client_gets_into_a_label(world):
    await world.ask("my password is hunter2", metadata={"ticket": "hunter3"})
    await world.ask(model="hunter4")
    text = (await world.http.get("/metrics")).text
    assert 'team="support"' in text
    for hidden in (world.secret, str(world.all_requests()[0].key_id), "hunter"):
        assert hidden not in text


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.4", False), ("gateway.example", False)),
    ],
)
def test_only_loopback_is_open(host, local):
    assert on_loopback(host) is local
