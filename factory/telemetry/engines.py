"""What engines and embedders say of themselves at a scrape, under vLLM's names where it has one.

    state = EngineState(replicas=1, running=3, waiting=0, kv_cache_usage=0.2, own={"ab12": text})
    families({"engine-smollm2-135m": state})

Gauges are of the moment and over all replicas. Counters and histograms are each replica's own, in
Prometheus' text format, and stay apart by the label `engine`: a sum over replicas that come and go
would fall, which Prometheus takes for a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """One deployment of an engine or embedder, over its replicas."""

    replicas: int
    """Those that reported."""
    running: float
    """Requests in batches."""
    waiting: float = 0.0
    """Requests that have no place in a batch yet."""
    kv_cache_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1, mean over the replicas."""
    saturation: float = 0.0
    """Share of the places in batches that are taken, 0 to 1."""
    memory_bytes: float = 0.0
    """Resident memory of all replicas."""
    gpu_memory_usage: float = 0.0
    """Share of GPU memory in use, 0 to 1, of the fullest replica."""
    generates: bool = True
    """False for an embedder, which has no KV cache and no places."""
    own: Mapping[str, str] = field(default_factory=dict)
    """By replica, its counters and histograms in Prometheus' text format."""


_GAUGES = {
    "factory_engine_replicas": ("Replicas of an engine that reported.", "replicas"),
    "factory_engine_memory_bytes": ("Resident memory of an engine's replicas.", "memory_bytes"),
    "factory_engine_gpu_memory_usage": (
        "GPU memory in use, 1 for all of it, of the fullest replica.",
        "gpu_memory_usage",
    ),
}
_GENERATING = {
    "vllm:num_requests_running": ("Requests in batches.", "running"),
    "vllm:num_requests_waiting": ("Requests without a place in a batch yet.", "waiting"),
    "vllm:kv_cache_usage_perc": ("KV cache in use, 1 for all of it.", "kv_cache_usage"),
    "factory_engine_batch_saturation": (
        "Places in batches that are taken, 1 for all of them.",
        "saturation",
    ),
}
_EMBEDDING = {"factory_embedding_requests_running": ("Requests at an embedder.", "running")}


def families(engines: Mapping[str, EngineState]) -> Iterator[Metric]:
    """All of it for Prometheus, with the label `deployment`."""
    generating = {name: one for name, one in engines.items() if one.generates}
    embedding = {name: one for name, one in engines.items() if not one.generates}
    yield from _gauges(_GAUGES, engines)
    yield from _gauges(_GENERATING, generating)
    yield from _gauges(_EMBEDDING, embedding)
    yield from _own(engines)


def _gauges(
    columns: Mapping[str, tuple[str, str]], engines: Mapping[str, EngineState]
) -> Iterator[Metric]:
    for name, (what, column) in columns.items():
        family = GaugeMetricFamily(name, what, labels=("deployment",))
        for deployment, one in engines.items():
            family.add_metric((deployment,), float(getattr(one, column)))
        yield family


def _own(engines: Mapping[str, EngineState]) -> Iterator[Metric]:
    """What replicas count, each family once, with the labels `deployment` and `engine`."""
    found: dict[str, Metric] = {}
    for deployment, one in engines.items():
        for replica, text in one.own.items():
            labels = {"deployment": deployment, "engine": replica}
            for said in text_string_to_metric_families(text):
                family = found.setdefault(
                    said.name, Metric(said.name, said.documentation, said.type)
                )
                for sample in said.samples:
                    family.add_sample(sample.name, labels | sample.labels, sample.value)
    yield from found.values()
