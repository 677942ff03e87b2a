"""Prometheus' text format.

body = render(traffic, state)       # served as CONTENT_TYPE
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.registry import Collector

from factory.telemetry.state import State, families
from factory.telemetry.traffic import Traffic

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Media type of what `render` returns."""


class _Scrape(Collector):
    """Everything that one scrape shows."""

    def __init__(self, traffic: Traffic, state: State) -> None:
        self._traffic = traffic
        self._state = state

    def collect(self) -> Iterable[Metric]:
        yield from self._traffic.registry.collect()
        yield from families(self._state, self._traffic.replica)


def render(traffic: Traffic, state: State) -> bytes:
    """All metrics as text, UTF-8."""
    return generate_latest(_Scrape(traffic, state))
