"""What one replica counts for Prometheus: an engine under vLLM's own names, an embedder under ours.

    metrics = EngineMetrics()
    metrics.step(iteration_stats)          # by vLLM's logger, once a step
    metrics.text()                         # Prometheus' text format, which the gateway passes on

vLLM's own logger is off: it costs every step some forty observations, of which a dashboard shows
these.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
BETWEEN_TOKENS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 20.0),
)
REQUEST_S = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0),
)
TOKENS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    *(10_000, 20_000, 50_000, 100_000),
)
"""Upper bounds of the histograms, as fine as vLLM's where models of this size are."""

disable_created_metrics()  # type: ignore[no-untyped-call]


class _Metrics:
    """A registry of the replica's own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def text(self) -> str:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self._registry)

    def _histogram(self, name: str, what: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, buckets=bounds, registry=self._registry)


class EngineMetrics(_Metrics):
    """Counters and histograms of an engine."""

    def __init__(self) -> None:
        super().__init__()
        self._prompt = self._counter("vllm:prompt_tokens", "Prompt tokens computed.")
        self._generation = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._finished = self._counter(
            "vllm:request_success", "Finished requests, by why they ended.", "finished_reason"
        )
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds",
            "From a request's arrival at the engine to its first token.",
            FIRST_TOKEN_S,
        )
        self._between = self._histogram(
            "vllm:inter_token_latency_seconds",
            "Between two tokens of an answer.",
            BETWEEN_TOKENS_S,
        )
        self._end_to_end = self._histogram(
            "vllm:e2e_request_latency_seconds",
            "From a request's arrival at the engine to its last token.",
            REQUEST_S,
        )
        self._queued = self._histogram(
            "vllm:request_queue_time_seconds",
            "What a request waited for a place in the batch.",
            REQUEST_S,
        )
        self._prompts = self._histogram(
            "vllm:request_prompt_tokens", "Prompt length of finished requests.", TOKENS
        )
        self._answers = self._histogram(
            "vllm:request_generation_tokens", "Answer length of finished requests.", TOKENS
        )

    def step(self, iteration: Any) -> None:
        """Count one step's `IterationStats`."""
        self._prompt.inc(iteration.prompt_token_stats.computed)
        self._generation.inc(iteration.num_generation_tokens)
        for seconds in iteration.time_to_first_tokens_iter:
            self._first_token.observe(seconds)
        for seconds in iteration.inter_token_latencies_iter:
            self._between.observe(seconds)
        for one in iteration.finished_requests:
            self._finished.labels(str(one.finish_reason)).inc()
            self._end_to_end.observe(one.e2e_latency)
            self._queued.observe(one.queued_time)
            self._prompts.observe(one.num_prompt_tokens)
            self._answers.observe(one.num_generation_tokens)


class EmbeddingMetrics(_Metrics):
    """Counters and histograms of an embedder."""

    def __init__(self) -> None:
        super().__init__()
        self._texts = self._counter("factory_embedding_texts", "Texts embedded.")
        self._tokens = self._counter("factory_embedding_tokens", "Tokens embedded.")
        self._seconds = self._histogram(
            "factory_embedding_seconds",
            "From a request's arrival at the embedder to its vectors.",
            FIRST_TOKEN_S,
        )
        self._batches = self._histogram(
            "factory_embedding_batch_tokens", "Tokens encoded together.", TOKENS
        )

    def request(self, seconds: float) -> None:
        """Count a request that took so long."""
        self._seconds.observe(seconds)

    def batch(self, texts: int, tokens: int) -> None:
        """Count texts that were encoded together."""
        self._texts.inc(texts)
        self._tokens.inc(tokens)
        self._batches.observe(tokens)
