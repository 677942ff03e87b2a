"""What engines count reaches Prometheus under vLLM's names, replica by replica."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from factory.telemetry.engines import EngineState
from factory.telemetry.exposition import render
from factory.telemetry.state import State
from factory.telemetry.traffic import Traffic
from serve_apps.replica_metrics import EmbeddingMetrics, EngineMetrics


def step(tokens: int, first: float) -> Any:
    done = SimpleNamespace(
        finish_reason="stop",
        e2e_latency=2.0,
        queued_time=0.0,
        num_prompt_tokens=40,
        num_generation_tokens=tokens,
    )
    return SimpleNamespace(
        prompt_token_stats=SimpleNamespace(computed=30),
        num_generation_tokens=tokens,
        time_to_first_tokens_iter=[first],
        inter_token_latencies_iter=[0.03] * (tokens - 1),
        finished_requests=[done],
    )


def scraped(**engines: EngineState) -> dict[tuple[str, ...], float]:
    """Values by name and labels, as Prometheus reads them."""
    text = render(Traffic(), State(engines=engines)).decode()
    assert text.count("# TYPE vllm:generation_tokens_total counter") <= 1
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): value
        for family in text_string_to_metric_families(text)
        for sample, value in ((one, one.value) for one in family.samples)
        if "deployment" in sample.labels
    }


def test_replicas_stay_apart_and_families_are_told_once():
    one, other = EngineMetrics(), EngineMetrics()
    one.step(step(5, 0.09))
    one.step(step(5, 0.3))
    other.step(step(7, 0.09))
    own = {"a": one.text(), "b": other.text()}
    found = scraped(
        small=EngineState(replicas=2, running=1, own=own, saturation=0.5),
        large=EngineState(replicas=1, running=0, own={"c": EngineMetrics().text()}),
    )

    a, b = ("deployment=small", "engine=a"), ("deployment=small", "engine=b")
    assert found["vllm:generation_tokens_total", *a] == 10
    assert found["vllm:generation_tokens_total", *b] == 7
    assert found["vllm:generation_tokens_total", "deployment=large", "engine=c"] == 0
    assert found["vllm:prompt_tokens_total", *a] == 60
    first = "vllm:time_to_first_token_seconds"
    assert found[f"{first}_bucket", *a, "le=0.1"] == 1
    assert found[f"{first}_bucket", *a, "le=0.5"] == found[f"{first}_count", *a] == 2
    assert found["vllm:inter_token_latency_seconds_count", *b] == 6
    assert found["vllm:request_prompt_tokens_bucket", *b, "le=50.0"] == 1
    assert found["vllm:request_success_total", *a, "finished_reason=stop"] == 2
    assert found["factory_engine_batch_saturation", "deployment=small"] == 0.5


def test_an_embedder_has_no_places_and_shows_what_it_embeds():
    metrics = EmbeddingMetrics()
    metrics.request(0.02)
    metrics.batch(texts=3, tokens=60)
    found = scraped(
        mini=EngineState(replicas=1, running=2, generates=False, own={"a": metrics.text()})
    )

    mini = ("deployment=mini", "engine=a")
    assert found["factory_embedding_tokens_total", *mini] == 60
    assert found["factory_embedding_texts_total", *mini] == 3
    assert found["factory_embedding_seconds_count", *mini] == 1
    assert found["factory_embedding_requests_running", "deployment=mini"] == 2
    assert not any(name.startswith("vllm:") for name, *_ in found)
