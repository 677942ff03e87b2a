"""Queue wait as a metric: how long jobs waited while only room kept them. Pure.

waits(queue.list(), now, days=30)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from factory.cluster.queue.store import QueuedJob


@dataclass(frozen=True, slots=True)
class Waits:
    """Waits of one team's jobs of one class, in seconds."""

    team: str
    priority: str
    jobs: int
    p50_s: float
    p95_s: float
    max_s: float


def waits(jobs: Iterable[QueuedJob], now: datetime, days: float) -> list[Waits]:
    """By team and class; a job that still waits counts with what it has waited so far."""
    found: dict[tuple[str, str], list[float]] = {}
    for job in jobs:
        if job.created_at < now - timedelta(days=days):
            continue
        more = 0.0 if job.eligible_at is None else (now - job.eligible_at).total_seconds()
        found.setdefault((job.team, job.spec.priority), []).append(job.waited_s + max(0.0, more))
    result = []
    for (team, priority), seconds in sorted(found.items()):
        seconds.sort()
        median, high = (seconds[ceil(part * len(seconds)) - 1] for part in (0.5, 0.95))
        result.append(Waits(team, priority, len(seconds), median, high, seconds[-1]))
    return result
