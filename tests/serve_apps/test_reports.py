"""What engines say of themselves when the gateway is scraped, and what happens when they do not."""

from __future__ import annotations

import inspect
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentBroadcastResponse, DeploymentHandle

from factory.scaling.signals import ReplicaSignals
from factory.telemetry.engines import EngineState
from serve_apps.reports import Report, Reports, added


class Handle:
    """A deployment's handle that answers a broadcast, or fails as Serve's does."""

    def __init__(self, answers: list[Report] | Exception) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def broadcast(self, method: str) -> Handle:
        self.asked.append(method)
        return self

    async def results_async(self, *, timeout_s: float) -> list[Report]:
        assert timeout_s <= 1
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


class Slumber:
    def __init__(self, asleep: bool) -> None:
        self.asleep = asleep


class Watch:
    """Knows of those engines that may sleep."""

    def __init__(self, **asleep: bool) -> None:
        self._asleep = asleep

    def of(self, name: str) -> Any:
        return Slumber(self._asleep[name]) if name in self._asleep else None


def report(running: float, waiting: float, kv_cache_usage: float, name: str = "a") -> Report:
    signals = ReplicaSignals(
        running=running,
        waiting=waiting,
        kv_cache_usage=kv_cache_usage,
        max_batch=8,
        memory_bytes=5,
        gpu_memory_usage=kv_cache_usage,
    )
    return Report(replica=name, signals=signals.stats(), metrics=f"of_{name} 1")


def test_replicas_are_added_and_their_caches_averaged():
    assert added([report(3, 1, 0.5), report(1, 0, 0.1, "b")], generates=True) == EngineState(
        replicas=2,
        running=4,
        waiting=1,
        kv_cache_usage=0.3,
        saturation=0.25,
        memory_bytes=10,
        gpu_memory_usage=0.5,
        own={"a": "of_a 1", "b": "of_b 1"},
    )


def test_serves_own_handle_can_be_asked_like_that():
    inspect.signature(DeploymentHandle.broadcast).bind(None, "report")
    inspect.signature(DeploymentBroadcastResponse.results_async).bind(None, timeout_s=0.5)


async def test_every_replica_that_is_awake_is_asked_once():
    steady = Handle([report(3, 1, 0.5), report(1, 0, 0.1)])
    dozer, awake = Handle([report(9, 9, 0.9)]), Handle([report(2, 0, 0.2)])
    handles: Any = {"steady": steady, "dozer": dozer, "awake": awake}
    watch: Any = Watch(dozer=True, awake=False)
    found = await Reports(handles, watch)()
    assert {name: (one.replicas, one.running) for name, one in found.items()} == {
        "steady": (2, 4),
        "awake": (1, 2),
    }
    assert steady.asked == awake.asked == ["report"]
    assert dozer.asked == []


async def test_who_fails_or_is_late_is_left_out_and_the_others_stay():
    handles: Any = {
        "late": Handle(TimeoutError("Timed out waiting for broadcast results.")),
        "gone": Handle(DeploymentUnavailableError("no replicas")),
        "empty": Handle([]),
        "well": Handle([report(1, 0, 0.1)]),
    }
    watch: Any = Watch()
    assert set(await Reports(handles, watch)()) == {"well"}


async def test_an_embedder_is_not_taken_for_something_that_generates():
    handles: Any = {name: Handle([report(1, 0, 0)]) for name in ("embedder-mini", "engine-small")}
    watch: Any = Watch()
    found = await Reports(handles, watch)()
    assert {name: one.generates for name, one in found.items()} == {
        "embedder-mini": False,
        "engine-small": True,
    }
