"""What engines and embedders say about themselves when somebody scrapes the gateway.

    reports = Reports({"engine-smollm2-135m": handle}, watch)
    await reports()["engine-smollm2-135m"].running

All replicas of a deployment are asked at once, past Serve's queues, so a busy engine answers as a
calm one does. What sleeps is not asked; a deployment without replicas fails at once instead of
being woken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

from factory.scaling.signals import ReplicaSignals
from factory.telemetry.engines import EngineState

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from serve_apps.watch import Watch

_log = logging.getLogger(__name__)

PATIENCE_S = 0.5
"""Seconds that an engine has to answer."""


class Report(TypedDict):
    """One replica's answer."""

    replica: str
    """Its name for as long as it lives."""
    signals: dict[str, float]
    """`ReplicaSignals.stats()` of this moment."""
    metrics: str
    """What it has counted, in Prometheus' text format."""


def added(reports: list[Report], *, generates: bool) -> EngineState:
    """A deployment from its replicas' reports, at least one."""
    signals = [ReplicaSignals.from_stats(one["signals"]) for one in reports]
    places = sum(one.max_batch for one in signals)
    return EngineState(
        replicas=len(reports),
        running=sum(one.running for one in signals),
        waiting=sum(one.waiting for one in signals),
        kv_cache_usage=sum(one.kv_cache_usage for one in signals) / len(signals),
        saturation=min(1.0, sum(one.running for one in signals) / places),
        memory_bytes=sum(one.memory_bytes for one in signals),
        gpu_memory_usage=max(one.gpu_memory_usage for one in signals),
        generates=generates,
        own={one["replica"]: one["metrics"] for one in reports},
    )


class Reports:
    """Asks the engines of one application."""

    def __init__(self, handles: Mapping[str, DeploymentHandle], watch: Watch) -> None:
        """`handles` of engines and embedders, by deployment; `watch` knows which sleep."""
        self._handles = handles
        self._watch = watch

    async def __call__(self) -> dict[str, EngineState]:
        """By deployment; what sleeps or does not answer in time is left out."""
        awake = [name for name in self._handles if not self._asleep(name)]
        found = await asyncio.gather(*(self._ask(name) for name in awake))
        return {name: state for name, state in zip(awake, found, strict=True) if state}

    def _asleep(self, name: str) -> bool:
        slumber = self._watch.of(name)
        return slumber is not None and slumber.asleep

    async def _ask(self, name: str) -> EngineState | None:
        try:
            answers = await (
                self._handles[name].broadcast("report").results_async(timeout_s=PATIENCE_S)
            )
        except Exception as error:
            # A replica starts, stops or is busy: its gauges are missing from this one scrape.
            _log.info("%s does not report: %s", name, str(error)[:200] or type(error).__name__)
            return None
        return added(answers, generates=not name.startswith("embedder-")) if answers else None
