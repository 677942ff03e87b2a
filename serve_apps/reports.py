"""What the engines say about themselves when somebody scrapes the gateway.

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
from typing import TYPE_CHECKING

from factory.scaling.signals import ReplicaSignals
from factory.telemetry.state import EngineState

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from serve_apps.watch import Watch

_log = logging.getLogger(__name__)

PATIENCE_S = 0.5
"""Seconds that an engine has to answer."""


def added(reports: list[ReplicaSignals]) -> EngineState:
    """A deployment from its replicas' reports, at least one."""
    return EngineState(
        replicas=len(reports),
        running=sum(one.running for one in reports),
        waiting=sum(one.waiting for one in reports),
        kv_cache_usage=sum(one.kv_cache_usage for one in reports) / len(reports),
    )


class Reports:
    """Asks the engines of one application."""

    def __init__(self, handles: Mapping[str, DeploymentHandle], watch: Watch) -> None:
        """`handles` of deployments of `TierEngine`, by name; `watch` knows which sleep."""
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
                self._handles[name].broadcast("signals").results_async(timeout_s=PATIENCE_S)
            )
        except Exception as error:
            # A replica starts, stops or is busy: its gauges are missing from this one scrape.
            _log.info("%s does not report: %s", name, str(error)[:200] or type(error).__name__)
            return None
        return added([ReplicaSignals.from_stats(one) for one in answers]) if answers else None
