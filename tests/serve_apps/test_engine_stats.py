"""An engine's statistics as the signals that the policy sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.scaling.signals import ReplicaSignals
from serve_apps.engine_stats import WINDOW_S, EngineStats, Recent


class Time:
    now = 10.0

    def __call__(self) -> float:
        return self.now


def scheduler(running: int, waiting: int = 0, skipped: int = 0, kv: float = 0.0) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=skipped,
        kv_cache_usage=kv,
    )


def finished(prompt: int) -> Any:
    return SimpleNamespace(
        num_prompt_tokens=prompt,
        num_generation_tokens=2,
        e2e_latency=1.5,
        queued_time=0.25,
        finish_reason="stop",
    )


def iteration(
    tokens: int = 0, prompt: int = 0, first: tuple[float, ...] = (), between: tuple[float, ...] = ()
) -> Any:
    return SimpleNamespace(
        num_generation_tokens=tokens,
        prompt_token_stats=SimpleNamespace(computed=prompt),
        time_to_first_tokens_iter=list(first),
        inter_token_latencies_iter=list(between),
        finished_requests=[finished(prompt)] if prompt else [],
    )


def test_steps_add_up_and_gauges_are_of_the_moment() -> None:
    time = Time()
    stats = EngineStats(32, time)
    stats.record(scheduler(2, waiting=1, skipped=1, kv=0.25), iteration(2, 40, (0.1, 0.3)))
    time.now += 0.5
    stats.record(scheduler(1), iteration(2, between=(0.05, 0.07)))
    time.now += 5.0
    stats.record(scheduler(0), None)

    found = stats.signals()
    assert (found.running, found.waiting, found.max_batch) == (0, 0, 32)
    assert (found.requests_total, found.prompt_tokens_total) == (2, 40)
    assert (found.generation_tokens_total, found.steps_total) == (4, 2)
    assert found.busy_s_total == pytest.approx(0.3 + 0.5)
    assert (found.ttft_p50_s, found.inter_token_p50_s) == pytest.approx((0.2, 0.06))
    assert found.prompt_p95_tokens == 40
    assert found.memory_bytes > 1e7
    assert ReplicaSignals.from_stats(found.stats()) == found


def test_time_between_requests_is_not_busy() -> None:
    time = Time()
    stats = EngineStats(4, time)
    stats.record(scheduler(0), iteration(1))
    time.now += 100
    stats.record(scheduler(1), iteration(1))
    time.now += 0.25
    stats.record(scheduler(0), iteration(1))
    assert stats.signals().busy_s_total == pytest.approx(0.25)


def test_an_idle_engine_is_busy_from_the_arrival_of_what_it_computes_first() -> None:
    time = Time()
    stats = EngineStats(4, time)
    stats.record(scheduler(1), iteration(1, 40, first=(0.5, 0.3)))
    assert stats.signals().busy_s_total == pytest.approx(0.5)
    stats.record(scheduler(0), None)
    time.now += 0.2
    stats.record(scheduler(0), iteration(1, 40, first=(0.5,)))
    assert stats.signals().busy_s_total == pytest.approx(0.7), "no more than has gone by"


def test_an_engine_that_fell_asleep_runs_nothing_and_has_counted_what_it_did() -> None:
    stats = EngineStats(4, Time())
    stats.record(scheduler(3, kv=0.5), iteration(7))
    stats.stopped()
    found = stats.signals()
    assert (found.running, found.kv_cache_usage, found.generation_tokens_total) == (0, 0, 7)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_quantiles_lie_within_what_was_seen_and_are_forgotten(values: list[float]) -> None:
    recent = Recent()
    recent.add(0.0, values)
    low, high = recent.quantiles(1.0)
    assert min(values) <= low <= high <= max(values)
    assert recent.quantiles(WINDOW_S + 1) == (0.0, 0.0)
