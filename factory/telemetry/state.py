"""What holds at the moment of a scrape: who waits, what sleeps, what engines and budgets say.

    state = State(running=3, waiting={"production": 0, "internal": 2, "batch": 0})
    families(state, replica="0")        # gauges for Prometheus

Engines go by vLLM's own names, so that dashboards made for it fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from factory.telemetry.books import Books


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """One deployment of an engine, over its replicas."""

    replicas: int
    """Those that reported."""
    running: float
    """Requests in batches."""
    waiting: float
    """Requests that have no place in a batch yet."""
    kv_cache_usage: float
    """Share of the KV cache in use, 0 to 1, mean over the replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One moment of one gateway process."""

    running: int = 0
    """Requests that have a turn."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Requests that wait for a turn, by class of their endpoint."""
    waking: int = 0
    """Requests that wait for an engine to wake."""
    asleep: Mapping[str, bool] = field(default_factory=dict)
    """By model, of those that may sleep."""
    targets_s: Mapping[str, float] = field(default_factory=dict)
    """The time to first token that endpoints promise, in seconds."""
    engines: Mapping[str, EngineState] = field(default_factory=dict)
    """By deployment; what sleeps or does not answer in time is left out."""
    books: Books | None = None
    """None when the ledger did not answer in time."""


def families(state: State, replica: str) -> Iterator[Metric]:
    """`state` as Prometheus' gauges; those of one process carry its `replica`."""
    yield _gauge(
        "factory_requests_running",
        "Requests that have their turn.",
        ("replica",),
        [((replica,), state.running)],
    )
    yield _gauge(
        "factory_requests_waiting",
        "Requests that wait for their turn, by class of the endpoint.",
        ("class", "replica"),
        [((name, replica), count) for name, count in state.waiting.items()],
    )
    yield _gauge(
        "factory_requests_waking",
        "Requests that wait for an engine to wake.",
        ("replica",),
        [((replica,), state.waking)],
    )
    yield _gauge(
        "factory_model_asleep",
        "1 for a model that must be woken first, of those that may sleep.",
        ("model",),
        [((name,), asleep) for name, asleep in state.asleep.items()],
    )
    yield _gauge(
        "factory_time_to_first_token_target_seconds",
        "The time to first token that an endpoint promises.",
        ("endpoint",),
        [((name,), seconds) for name, seconds in state.targets_s.items()],
    )
    yield from _engines(state.engines)
    yield _gauge(
        "factory_ledger_up",
        "1 when the ledger answered the scrape.",
        (),
        [((), state.books is not None)],
    )
    yield from _books(state.books or Books())


def _engines(engines: Mapping[str, EngineState]) -> Iterator[Metric]:
    columns = {
        "vllm:num_requests_running": ("Requests in batches.", "running"),
        "vllm:num_requests_waiting": ("Requests without a place in a batch yet.", "waiting"),
        "vllm:kv_cache_usage_perc": ("KV cache in use, 1 for all of it.", "kv_cache_usage"),
        "factory_engine_replicas": ("Replicas of an engine that reported.", "replicas"),
    }
    for name, (what, column) in columns.items():
        values = [((engine,), float(getattr(one, column))) for engine, one in engines.items()]
        yield _gauge(name, what, ("deployment",), values)


def _books(books: Books) -> Iterator[Metric]:
    yield _gauge(
        "factory_budget_remaining_ratio",
        "What is neither spent nor held of a team's or an endpoint's budget, 1 for all of it.",
        ("scope", "window"),
        books.remaining.items(),
    )
    yield _gauge(
        "factory_job_queue_wait_seconds",
        "The longest wait of a team's job that only room keeps from starting.",
        ("team",),
        [((team,), seconds) for team, seconds in books.waits_s.items()],
    )
    yield _gauge(
        "factory_jobs",
        "Jobs of the queue that have not ended.",
        ("state",),
        [((state,), count) for state, count in books.jobs.items()],
    )


def _gauge(
    name: str,
    what: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = GaugeMetricFamily(name, what, labels=labels)
    for names, value in values:
        family.add_metric(names, float(value))
    return family
