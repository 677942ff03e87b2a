"""What the policy sees: each replica's report, and their sum over a deployment.

    stats = ReplicaSignals(running=3, waiting=1, max_batch=32, requests_total=40, …).stats()
    # a Serve replica returns it from record_autoscaling_stats()
    report = ReplicaSignals.from_stats(stats)
    signals, tally = gather(Tally(), {"replica-1": report}, now=12.0, ready=1, starting=0, queued=0)

Gauges are of the moment. Names that end in `_total` only grow, from the replica's start on, so a
lost report costs nothing. Quantiles are over the replica's last minute; 0 means not measured.
A retrieval replica reports the texts it embeds as prompt tokens and its batches as steps, and
leaves what belongs to generation at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

COUNTERS = (
    "requests_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "steps_total",
    "busy_s_total",
)
"""Fields that only grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSignals:
    """One replica's report."""

    running: float = 0.0
    """Requests that hold a place in the batch (`vllm:num_requests_running`)."""
    waiting: float = 0.0
    """Requests taken that have no place yet (`vllm:num_requests_waiting`)."""
    max_batch: float = 1.0
    """Most requests in a batch (vLLM's `max_num_seqs`)."""
    kv_cache_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1 (`vllm:kv_cache_usage_perc`)."""
    requests_total: float = 0.0
    """Requests taken."""
    prompt_tokens_total: float = 0.0
    """Prompt tokens computed; tokens found in the prefix cache do not count."""
    generation_tokens_total: float = 0.0
    """Tokens generated."""
    steps_total: float = 0.0
    """Engine iterations."""
    busy_s_total: float = 0.0
    """Seconds in which a batch was being computed."""
    ttft_p50_s: float = 0.0
    """Median time to first token, in seconds, from arrival at the replica."""
    ttft_p95_s: float = 0.0
    """Its 95th percentile."""
    inter_token_p50_s: float = 0.0
    """Median time between two tokens of an answer, in seconds."""
    inter_token_p95_s: float = 0.0
    """Its 95th percentile."""
    prompt_p50_tokens: float = 0.0
    """Median prompt length."""
    prompt_p95_tokens: float = 0.0
    """Its 95th percentile."""
    search_p50_s: float = 0.0
    """Median time of a vector search, in seconds."""
    search_p95_s: float = 0.0
    """Its 95th percentile."""
    memory_bytes: float = 0.0
    """Resident memory of the replica."""
    gpu_memory_usage: float = 0.0
    """Share of GPU memory in use, 0 to 1."""

    @property
    def saturation(self) -> float:
        """Share of the batch's places that are taken, 0 to 1."""
        return min(1.0, self.running / self.max_batch) if self.max_batch else 0.0

    def stats(self) -> dict[str, float]:
        """As `record_autoscaling_stats` returns them: numbers by name."""
        return {name: float(value) for name, value in asdict(self).items()}

    @classmethod
    def from_stats(cls, stats: Mapping[str, float]) -> ReplicaSignals:
        """Read `stats` again; unknown names are ignored, missing ones keep their default."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: float(value) for name, value in stats.items() if name in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """A deployment at one moment."""

    now: float
    """Seconds on any clock that does not jump back."""
    ready: int
    """Replicas that answer."""
    starting: int = 0
    """Replicas that were asked for and do not answer yet."""
    queued: float = 0.0
    """Requests that no replica has taken yet."""
    waiting: float = 0.0
    """Requests that replicas have taken and not yet begun."""
    running: float = 0.0
    """Requests in batches."""
    max_batch: float = 1.0
    """Places in a replica's batch (mean over the replicas)."""
    kv_cache_usage: float = 0.0
    """Share of the KV cache in use (mean over the replicas)."""
    gpu_memory_usage: float = 0.0
    """Share of GPU memory in use (the fullest replica)."""
    arrived_total: float = 0.0
    """Requests that have arrived since the deployment began."""
    prompt_tokens_total: float = 0.0
    """Prompt tokens computed since then, by replicas past and present; so are the next three."""
    generation_tokens_total: float = 0.0
    """Tokens generated."""
    steps_total: float = 0.0
    """Engine iterations."""
    busy_s_total: float = 0.0
    """Replica-seconds in which a batch was being computed."""
    ttft_p50_s: float = 0.0
    """Median time to first token, mean over replicas weighted by requests."""
    ttft_p95_s: float = 0.0
    """Its 95th percentile, likewise."""
    inter_token_p95_s: float = 0.0
    """The same of the time between tokens."""
    search_p95_s: float = 0.0
    """The same of a vector search."""

    @property
    def saturation(self) -> float:
        """Share of all places in batches that are taken, 0 to 1."""
        places = self.ready * self.max_batch
        return min(1.0, self.running / places) if places else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counters over replicas that come and go. Plain values, so it can be stored."""

    seen: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Each living replica's `COUNTERS`, as last reported."""
    gone: tuple[float, ...] = (0.0,) * len(COUNTERS)
    """Sum of the counters of replicas that are gone."""


def gather(
    tally: Tally,
    reports: Mapping[str, ReplicaSignals],
    *,
    now: float,
    ready: int,
    starting: int,
    queued: float,
) -> tuple[Signals, Tally]:
    """The deployment's signals from its replicas' reports, by replica name.

    A replica that is missing from `reports` is gone, and what it counted stays counted. One whose
    counters fell has restarted under its name.
    """
    seen: dict[str, tuple[float, ...]] = {}
    gone = list(tally.gone)
    for name, report in reports.items():
        counted = tuple(float(getattr(report, counter)) for counter in COUNTERS)
        before = tally.seen.get(name)
        if before is not None and counted[0] < before[0]:
            gone = [a + b for a, b in zip(gone, before, strict=True)]
        seen[name] = counted
    for name, before in tally.seen.items():
        if name not in reports:
            gone = [a + b for a, b in zip(gone, before, strict=True)]
    totals = [
        gone[index] + sum(counted[index] for counted in seen.values())
        for index in range(len(COUNTERS))
    ]
    living = list(reports.values())
    weights = [report.running + report.waiting for report in living]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    def weighted(name: str) -> float:
        pairs = [
            (float(getattr(report, name)), weight + 0.1)
            for report, weight in zip(living, weights, strict=True)
            if getattr(report, name) > 0
        ]
        total = sum(weight for _, weight in pairs)
        return sum(value * weight for value, weight in pairs) / total if total else 0.0

    signals = Signals(
        now=now,
        ready=ready,
        starting=starting,
        queued=queued,
        waiting=sum(report.waiting for report in living),
        running=sum(report.running for report in living),
        max_batch=max(1.0, mean([report.max_batch for report in living])),
        kv_cache_usage=mean([report.kv_cache_usage for report in living]),
        gpu_memory_usage=max((report.gpu_memory_usage for report in living), default=0.0),
        arrived_total=totals[0] + queued,
        prompt_tokens_total=totals[1],
        generation_tokens_total=totals[2],
        steps_total=totals[3],
        busy_s_total=totals[4],
        ttft_p50_s=weighted("ttft_p50_s"),
        ttft_p95_s=weighted("ttft_p95_s"),
        inter_token_p95_s=weighted("inter_token_p95_s"),
        search_p95_s=weighted("search_p95_s"),
    )
    return signals, Tally(seen=seen, gone=tuple(gone))
