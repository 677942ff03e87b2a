"""The policy inside Ray Serve: a small deployment wakes, grows under load, shrinks and sleeps."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from factory.config import EndpointClass
from factory.scaling import ReplicaSignals, Target
from serve_apps.autoscaling import ServePolicy, Share, autoscaling, latest_reports
from serve_apps.autoscaling import replicas as autoscaled

TARGET = Target(max_replicas=3, idle_after_s=4, ttft_s=0.5, startup_s=2)


class Answerer:
    """Answers two requests at once, each in a quarter of a second, and reports like an engine."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(2)
        self.taken = self.running = self.done = 0
        self.busy_s = 0.0

    async def __call__(self) -> int:
        self.taken += 1
        async with self.places:
            self.running += 1
            await asyncio.sleep(0.25)
            self.running -= 1
            self.done += 1
            self.busy_s += 0.125
        return self.taken

    def record_autoscaling_stats(self) -> dict[str, float]:
        return ReplicaSignals(
            running=self.running,
            waiting=self.taken - self.running - self.done,
            max_batch=2,
            requests_total=self.taken,
            prompt_tokens_total=self.taken,
            steps_total=self.taken,
            busy_s_total=self.busy_s,
        ).stats()


def replicas(app: str) -> int:
    """Replicas of the application's only deployment that run."""
    deployment = serve.status().applications[app].deployments["Answerer"]
    return int(deployment.replica_states.get("RUNNING", 0))


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Return when `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.mark.ray
def test_a_deployment_wakes_grows_and_sleeps_again(ray_cluster: None) -> None:
    app = "scaled"
    deployment = serve.deployment(Answerer).options(
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=4,
        autoscaling_config=autoscaling(TARGET, initial=0),
        health_check_period_s=1,
        graceful_shutdown_wait_loop_s=0.1,
    )
    handle = serve.run(deployment.bind(), name=app, route_prefix=None)
    try:
        assert replicas(app) == 0
        assert handle.remote().result(timeout_s=60) == 1
        most = 0

        def load() -> bool:
            nonlocal most
            answers = [handle.remote() for _ in range(24)]
            for answer in answers:
                answer.result(timeout_s=60)
            most = max(most, replicas(app))
            return most >= 2

        wait_for(load)
        wait_for(lambda: replicas(app) == 0)
    finally:
        serve.delete(app)


@pytest.mark.ray
def test_a_busy_internal_deployment_gives_back_what_production_needs(ray_cluster: None) -> None:
    def app(class_: EndpointClass, initial: int) -> serve.Application:
        share = Share(budget=2, unit=1, resource="places", class_=class_)
        deployment = serve.deployment(Answerer).options(
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=4,
            graceful_shutdown_wait_loop_s=0.1,
            **autoscaled(replace(TARGET, idle_after_s=60), initial, share),
        )
        return deployment.bind()

    apps = [
        serve.RunTarget(app("internal", 2), "noisy", route_prefix=None),
        serve.RunTarget(app("production", 0), "shop", route_prefix=None),
    ]
    noisy, shop = serve.run_many(apps)
    over = threading.Event()

    def ask_on() -> None:
        while not over.is_set():
            noisy.remote().result(timeout_s=60)

    def there_are(internal: int, production: int) -> bool:
        return (replicas("noisy"), replicas("shop")) == (internal, production)

    with ThreadPoolExecutor(16) as clients:
        try:
            asking = [clients.submit(ask_on) for _ in range(16)]
            wait_for(lambda: there_are(2, 0))
            answer = shop.remote()
            wait_for(lambda: there_are(1, 1))
            assert answer.result(timeout_s=60) == 1
        finally:
            over.set()
    assert not any(one.exception() for one in asking), "the flood was answered, only slower"
    for name, handle in (("noisy", noisy), ("shop", shop)):
        handle.shutdown()
        serve.delete(name, _blocking=False)


def context(**changes: Any) -> SimpleNamespace:
    """What Serve tells a policy."""
    known = {
        "raw_metrics": {},
        "policy_state": {},
        "current_time": 100.0,
        "current_num_replicas": 1,
        "target_num_replicas": 1,
        "total_queued_requests": 0,
        "deployment_name": "engine",
        "app_name": "factory",
    }
    return SimpleNamespace(**known | changes)


def test_the_newest_report_of_each_replica_counts() -> None:
    raw = {
        "running": {"a": [SimpleNamespace(value=1.0), SimpleNamespace(value=3.0)], "b": []},
        "somebody's own": {"a": [SimpleNamespace(value=9.0)]},
    }

    assert latest_reports(raw) == {"a": ReplicaSignals(running=3.0)}


def test_state_travels_through_serve_and_an_unchanged_number_is_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = ServePolicy(target={"min_replicas": 1, "max_replicas": 4})
    with caplog.at_level("INFO", "ray.serve"):
        wanted, memory = policy(context())
        again, later = policy(context(policy_state=memory, current_time=100.1))

    assert (wanted, again) == (1, 1)
    assert later["state"] == memory["state"]
    assert not caplog.records


def test_a_noisy_internal_deployment_gives_way_to_production() -> None:
    def policy(class_: str) -> ServePolicy:
        share = Share(budget=4, unit=1, class_=class_)  # type: ignore[arg-type]
        config = autoscaling(Target(min_replicas=4, max_replicas=8), share=share)
        return ServePolicy(**config.policy.policy_kwargs)

    internal, production = policy("internal"), policy("production")

    assert internal(context(app_name="noisy"))[0] == 4
    assert production(context(app_name="shop"))[0] == 4
    assert internal(context(app_name="noisy", current_time=101.0))[0] == 0
    assert internal(context(app_name="noisy", current_time=200.0))[0] == 4
