"""What one engine replica reports: vLLM's own statistics as `ReplicaSignals`.

    stats = EngineStats(max_batch=32)
    stats.record(scheduler_stats, iteration_stats)    # by vLLM's logger, once a step
    stats.signals().stats()                           # for Serve's record_autoscaling_stats()

Everything happens in the event loop of the replica. Quantiles are over the last minute.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import psutil

from factory.scaling.signals import ReplicaSignals
from serve_apps.replica_metrics import EngineMetrics

WINDOW_S = 60.0
"""Age at which an observation no longer counts in a quantile."""

_MOST = 4096
"""Observations kept of each kind: more only make a minute's quantiles slower, not better."""


class Recent:
    """Observations of the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def add(self, now: float, values: Iterable[float]) -> None:
        """Note `values`, observed at `now`."""
        self._seen.extend((now, value) for value in values)

    def quantiles(self, now: float) -> tuple[float, float]:
        """Median and 95th percentile; zeros when nothing was seen."""
        while self._seen and self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()
        if not self._seen:
            return 0.0, 0.0
        low, high = np.quantile([value for _, value in self._seen], (0.5, 0.95))
        return float(low), float(high)


class EngineStats:
    """Statistics of one engine since its start."""

    def __init__(self, max_batch: int, monotonic: Callable[[], float] = time.perf_counter) -> None:
        """`max_batch` is vLLM's `max_num_seqs`."""
        self._max_batch = max_batch
        self._monotonic = monotonic
        self._running = self._waiting = 0
        self._kv_cache_usage = 0.0
        self._requests = self._prompt_tokens = self._generation_tokens = self._steps = 0
        self._busy_s = 0.0
        self._last_s: float | None = None
        self._ttft, self._inter_token, self._prompt = Recent(), Recent(), Recent()
        self._process = psutil.Process()
        self.metrics = EngineMetrics()
        """What Prometheus gets."""

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Take one step's `SchedulerStats` and `IterationStats`; either may be None."""
        now = self._monotonic()
        was_busy = self._running > 0
        if scheduler is not None:
            self._running = scheduler.num_running_reqs
            self._waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self._kv_cache_usage = scheduler.kv_cache_usage
        if iteration is None:
            return
        self.metrics.step(iteration)
        self._steps += 1
        since = float("inf") if self._last_s is None else now - self._last_s
        # An engine that was idle began when the first of these requests came.
        begun = since if was_busy else max(iteration.time_to_first_tokens_iter, default=0.0)
        self._busy_s += min(begun, since) if begun < float("inf") else 0.0
        self._last_s = now
        self._prompt_tokens += iteration.prompt_token_stats.computed
        self._generation_tokens += iteration.num_generation_tokens
        self._requests += len(iteration.time_to_first_tokens_iter)
        self._ttft.add(now, iteration.time_to_first_tokens_iter)
        self._inter_token.add(now, iteration.inter_token_latencies_iter)
        self._prompt.add(now, (one.num_prompt_tokens for one in iteration.finished_requests))

    def stopped(self) -> None:
        """Note that the engine has gone; what it counted stays counted."""
        self._running = self._waiting = 0
        self._kv_cache_usage = 0.0
        self._last_s = None

    def signals(self) -> ReplicaSignals:
        """The replica's report of this moment."""
        now = self._monotonic()
        ttft, inter_token, prompt = (
            recent.quantiles(now) for recent in (self._ttft, self._inter_token, self._prompt)
        )
        return ReplicaSignals(
            running=self._running,
            waiting=self._waiting,
            max_batch=self._max_batch,
            kv_cache_usage=self._kv_cache_usage,
            requests_total=self._requests,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
            steps_total=self._steps,
            busy_s_total=self._busy_s,
            ttft_p50_s=ttft[0],
            ttft_p95_s=ttft[1],
            inter_token_p50_s=inter_token[0],
            inter_token_p95_s=inter_token[1],
            prompt_p50_tokens=prompt[0],
            prompt_p95_tokens=prompt[1],
            memory_bytes=self._process.memory_info().rss,
            gpu_memory_usage=_gpu_memory_usage(),
        )


def _gpu_memory_usage() -> float:
    """Share of the visible GPUs' memory that is in use; 0 without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    pairs = [torch.cuda.mem_get_info(device) for device in range(torch.cuda.device_count())]
    return 1 - sum(free for free, _ in pairs) / sum(total for _, total in pairs)
