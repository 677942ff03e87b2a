"""What traffic would cost and how fast it would be answered under a policy, before it exists.

    result = simulate(trace, profile, Ours(target), Slo(ttft_s=5.0), initial=3)
    result.replica_hours, result.attainment, result.ttft_p95_s

The policy is asked every second of simulated time, sees what a real deployment reports, and pays
for a replica from its order to the end of its last answer. Hours count until the last arrival.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.scaling.fleet import Fleet
from factory.scaling.policy import State, decide
from factory.scaling.profile import Profile
from factory.scaling.signals import Signals
from factory.scaling.target import Target
from factory.scaling.trace import Trace

TICK_S = 1.0
"""Simulated seconds between two looks of a policy that reacts."""
DRAIN_S = 3600.0
"""Longest that answers are awaited after the last arrival; what is late then has missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """When a request counts as answered in time."""

    ttft_s: float
    """Longest time to first token."""
    inter_token_s: float | None = None
    """Longest mean time between its tokens; None asks for nothing."""


class Policy(Protocol):
    """Somebody who decides how many replicas to hold."""

    name: str
    every_s: float
    """Simulated seconds between two questions."""

    def __call__(self, signals: Signals) -> tuple[int, tuple[str, ...]]:
        """Replicas to hold now, and why."""
        ...


class Ours:
    """The policy that runs in production: `factory.scaling.decide`."""

    name = "factory"
    every_s = TICK_S

    def __init__(self, target: Target) -> None:
        self.target = target
        self.state = State()

    def __call__(self, signals: Signals) -> tuple[int, tuple[str, ...]]:
        """Decide, and remember the state."""
        decision = decide(signals, self.state, self.target)
        self.state = decision.state
        return decision.replicas, decision.reasons


class Plan:
    """A plan made beforehand: replicas by period of `period_s` seconds."""

    name = "clairvoyant"

    def __init__(self, replicas: NDArray[np.int64], period_s: float) -> None:
        self.replicas, self.every_s = replicas, period_s

    def __call__(self, signals: Signals) -> tuple[int, tuple[str, ...]]:
        """What the plan says for this period."""
        index = min(int((signals.now + 1e-6) / self.every_s), self.replicas.size - 1)
        return int(self.replicas[index]), ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """One policy on one trace."""

    policy: str
    requests: int
    replica_hours: float
    attainment: float
    """Share of requests within the target."""
    usd: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    inter_token_p50_s: float
    inter_token_p95_s: float
    peak: int
    """Most replicas held at once."""
    decisions: tuple[tuple[float, int, tuple[str, ...]], ...]
    """When the wanted number changed, to what, and why."""
    timeline: NDArray[np.float64]
    """Rows of (second, replicas held, ready, requests running, requests waiting)."""
    met: NDArray[np.bool_]
    """For each request, whether it was within the target."""

    def summary(self) -> dict[str, Any]:
        """The figures, without the arrays."""
        names = (
            "replica_hours", "usd", "ttft_p50_s", "ttft_p95_s", "ttft_p99_s",
            "inter_token_p50_s", "inter_token_p95_s",
        )  # fmt: skip
        figures = {name: round(float(getattr(self, name)), 4) for name in names}
        return {
            "slo_attainment": round(self.attainment, 5),
            **figures,
            "peak": self.peak,
            "changes": len(self.decisions),
        }


def initial_replicas(trace: Trace, profile: Profile, *, seconds: float = 120.0) -> int:
    """Replicas for the load of the first `seconds`, so that no policy pays for a cold start that
    the recording does not have: the traffic was there before it began."""
    early = trace.arrivals < seconds
    busy = busy_seconds(trace, profile)[early].sum()
    return max(1, ceil(float(busy) / min(seconds, max(trace.seconds, 1.0)) / 0.8))


def usual_target_s(trace: Trace, profile: Profile) -> float:
    """A time to first token that this hardware can hold: three times what the 99th percentile of
    the prompts takes on an idle replica."""
    return 3 * profile.alone_s(float(np.quantile(trace.prompt, 0.99)))


def enough_replicas(trace: Trace, profile: Profile) -> int:
    """More replicas than any sane policy wants: three times the work of the busiest minute."""
    minutes = np.bincount(
        (trace.arrivals / 60).astype(np.int64), weights=busy_seconds(trace, profile)
    )
    return ceil(float(minutes.max()) / 60 * 3) + 8


def busy_seconds(trace: Trace, profile: Profile) -> NDArray[np.float64]:
    """Replica-seconds that each request takes of a full replica: the least it can cost."""
    decoding = profile.per_step_s / profile.max_batch + profile.per_sequence_s
    context = trace.prompt + trace.generated / 2
    least: NDArray[np.float64] = (
        profile.per_prompt_token_s * trace.prompt
        + (decoding + profile.per_context_token_s * context) * trace.generated
    )
    return least


def simulate(
    trace: Trace,
    profile: Profile,
    policy: Policy,
    slo: Slo,
    *,
    initial: int,
    most: int,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Replay `trace`; `initial` replicas answer from the first second, at most `most` are held.

    `progress` is told the share that is done.
    """
    # Replicas that drain stay beside those that are held.
    fleet = Fleet(profile, trace, most=2 * most + 8, seed=seed)
    fleet.resize(initial, now=0.0, at_once=True)
    wanted, decisions = initial, []
    timeline = np.zeros((int(trace.seconds / policy.every_s) + 1, 5))
    now, end = 0.0, trace.seconds
    for tick in range(timeline.shape[0]):
        signals = fleet.signals(now)
        replicas, reasons = policy(signals)
        replicas = min(replicas, most)
        if replicas != wanted:
            wanted = replicas
            decisions.append((now, replicas, reasons))
        fleet.resize(replicas, now=now)
        timeline[tick] = (
            now,
            fleet.ready + fleet.starting,
            fleet.ready,
            signals.running,
            signals.waiting + signals.queued,
        )
        now = min(now + policy.every_s, end)
        fleet.advance(now)
        if progress is not None and tick % 60 == 0:
            progress(tick / timeline.shape[0])
    seconds = fleet.replica_seconds(end)
    if fleet.ready + fleet.starting == 0:
        fleet.resize(1, now=now)
    while np.isinf(fleet.last).any() and now < end + DRAIN_S:
        now += 10 * TICK_S
        fleet.advance(now)
    return _result(policy.name, trace, profile, fleet, slo, seconds, decisions, timeline)


def _result(
    name: str,
    trace: Trace,
    profile: Profile,
    fleet: Fleet,
    slo: Slo,
    seconds: float,
    decisions: list[tuple[float, int, tuple[str, ...]]],
    timeline: NDArray[np.float64],
) -> Result:
    first = fleet.first - trace.arrivals + profile.overhead_s
    with np.errstate(invalid="ignore"):
        gaps = (fleet.last - fleet.first) / np.maximum(trace.generated - 1, 1)
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    met = first <= slo.ttft_s
    if slo.inter_token_s is not None:
        met &= (gaps <= slo.inter_token_s) | (trace.generated < 2)
    hours = seconds / 3600
    several = gaps[trace.generated > 1]
    return Result(
        policy=name,
        requests=len(trace),
        replica_hours=hours,
        attainment=float(met.mean()),
        usd=hours * profile.usd_per_hour,
        ttft_p50_s=float(np.quantile(first, 0.5)),
        ttft_p95_s=float(np.quantile(first, 0.95)),
        ttft_p99_s=float(np.quantile(first, 0.99)),
        inter_token_p50_s=float(np.quantile(several, 0.5)) if several.size else 0.0,
        inter_token_p95_s=float(np.quantile(several, 0.95)) if several.size else 0.0,
        peak=int(timeline[:, 1].max()),
        decisions=tuple(decisions),
        timeline=timeline,
        met=met,
    )
