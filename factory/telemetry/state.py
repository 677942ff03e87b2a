"""What holds at the moment of a scrape: who waits, what sleeps, what engines and budgets say.

state = State(running=3, waiting={"production": 0, "internal": 2, "batch": 0})
families(state, replica="0")        # for Prometheus
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from factory.telemetry import engines
from factory.telemetry.books import Books
from factory.telemetry.engines import EngineState


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
    """`state` for Prometheus; gauges of one process carry its `replica`."""
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
    yield from engines.families(state.engines)
    yield _gauge(
        "factory_ledger_up",
        "1 when the ledger answered the scrape.",
        (),
        [((), state.books is not None)],
    )
    yield from _books(state.books or Books())


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
    yield _gauge(
        "factory_spot_zone_up",
        "Whether a node of a spot zone could be had when last asked.",
        ("pool", "zone"),
        books.zones.items(),
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
