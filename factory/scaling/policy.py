"""How many replicas a deployment should have now, and why: a pure function.

    decision = decide(signals, State(), target)
    decision.replicas, decision.reasons     # 12, ("at most 5.40 requests/s expected…",)
    decision = decide(later, decision.state, target)

Every few seconds it learns from what has been done (`capacity`) and from what has arrived
(`demand`), and asks for the replicas that hold the latency target at the most that is expected when
a replica ordered now would answer. It orders at once and gives back only what the last minutes did
not need either. The same function runs in Ray Serve, in the simulator and in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil, exp, log, sqrt
from statistics import NormalDist
from typing import Any

from factory.scaling.capacity import Capacity
from factory.scaling.demand import BIN_S, Demand
from factory.scaling.signals import Signals
from factory.scaling.target import Target

MIX_S = 180.0
"""Seconds over which the mix of prompt and answer lengths is averaged."""
PATIENCE_S = 30.0
"""Seconds that a smaller need must have lasted, beside the start-up time, before it is followed."""
KV_THRESHOLD = 0.9
"""Share of the KV cache above which places in the batch do not count any more."""
WINDOW_S = 30.0
"""Seconds over which demand must be met in the mean; batches and patience level out the rest."""
CAREFREE, CAREFUL = (0.9, 0.7), (0.4, 0.99)
"""Share of the latency target at which the 95th percentile is kept, and quantile of its own past
errors to which a forecast is raised: with the error budget untouched, and with it spent."""
BUDGET_S = 3600.0
"""Seconds over which requests that miss the target fade from the error budget."""
LEAST_SHARE, LEAST_SPREAD = 0.15, 0.05
"""Bounds of that share, however rare misses are to be, and of the spread of latencies."""
SAFETY_RANGE = (0.1, 4.0)
"""Bounds of the learned factor on the safety margin."""
SAFETY_GAIN = 0.01
"""Relative change of the margin a second, at a latency 2.7 times too high or too low."""
NEWCOMER_S = 120.0
"""Seconds, beside the start-up time, in which a new policy only adds replicas: it knows nothing."""


Z = NormalDist().inv_cdf
"""Standard deviations above the mean at which a share of a normal distribution lies below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the policy remembers between decisions: plain values (`to_plain`, `from_plain`)."""

    at: float | None = None
    """When it last learned; None before the first time."""
    first: float = 0.0
    """When it learned first."""
    arrived: float = 0.0
    """`Signals` totals at `at`; so are the next six."""
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    steps: float = 0.0
    busy_s: float = 0.0
    begun: float = 0.0
    """Requests that had a place in a batch by then."""
    running: float = 0.0
    """Requests that ran then."""
    mix: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Prompt tokens and begun requests, generated tokens and done requests; all fading."""
    capacity: Capacity = field(default_factory=Capacity)
    demand: Demand = field(default_factory=Demand)
    safety: float = 1.0
    """Factor on the safety margin, learned from the latency that was reached."""
    late: float = 0.0
    """Requests that missed the latency target, fading."""
    served: float = 0.0
    """All requests, fading alike."""
    last_arrival: float | None = None
    """When a request was last seen; None before the first."""
    ordered_at: tuple[tuple[float, int], ...] = ()
    """When replicas were ordered that do not answer yet, and how many would be ready then."""
    startup_s: float | None = None
    """Seconds that starts really took, averaged; None before the first."""
    needs: tuple[tuple[float, int], ...] = ()
    """Recent needs, for the patience in scaling down."""
    replicas: int | None = None
    """The last decision."""

    @property
    def prompt_mean(self) -> float:
        """Tokens of a prompt, averaged over the last minutes; 0 before the first request."""
        return self.mix[0] / self.mix[1] if self.mix[1] > 0 else 0.0

    @property
    def generated_mean(self) -> float:
        """Tokens of an answer, likewise."""
        return self.mix[2] / self.mix[3] if self.mix[3] > 0 else 0.0

    def to_plain(self) -> dict[str, Any]:
        """As dictionaries, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> State:
        """Read `to_plain` again; an empty mapping is a fresh state."""
        if not plain:
            return cls()
        values = dict(plain)
        capacity, demand = values["capacity"], values["demand"]
        values["capacity"] = Capacity(
            moments=tuple(capacity["moments"]),
            products=tuple(capacity["products"]),
            costs=tuple(capacity["costs"]),
            seen_s=capacity["seen_s"],
        )
        values["demand"] = Demand(tuple(demand["counts"]))
        values["mix"] = tuple(values["mix"])
        for name in ("ordered_at", "needs"):
            values[name] = tuple((float(when), int(count)) for when, count in values[name])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many replicas to have, why, and what to remember."""

    replicas: int
    reasons: tuple[str, ...]
    state: State


def decide(signals: Signals, state: State, target: Target) -> Decision:
    """The replicas to have at `signals.now`. `state` is the one of the decision before."""
    held = signals.ready + signals.starting
    due = state.at is None or signals.now - state.at >= BIN_S - 1e-6
    if due:
        state = _learn(signals, state, target)
    elif state.replicas is not None and not (state.replicas == 0 and (held or signals.queued)):
        bounded = min(max(state.replicas, target.min_replicas), target.max_replicas)
        return Decision(replicas=bounded, reasons=(), state=state)

    need, reasons = _need(signals, state, target)
    if _asleep_and_asked(signals, held):
        need = max(1, need)
        reasons = [f"{signals.queued:.0f} requests wait for an endpoint that sleeps", *reasons]
    idle = state.last_arrival is None or signals.now - state.last_arrival >= target.idle_after_s
    quiet = not signals.queued and not signals.running and not signals.waiting
    if quiet and (idle or held == 0):
        return _conclude(
            target.min_replicas, [_idle_sentence(signals, state, target)], signals, state, target
        )
    need = max(need, 1)
    patience = PATIENCE_S + (state.startup_s or target.startup_s)
    recent = [(when, many) for when, many in state.needs if when >= signals.now - patience]
    state = replace(state, needs=(*recent, (signals.now, need)))
    kept = max(many for _, many in state.needs)
    new = signals.now - state.first < NEWCOMER_S + (state.startup_s or target.startup_s)
    if need >= held or kept >= held or new:
        wanted = max(need, min(kept, held))
        if new and need < held:
            wanted = max(wanted, held)
            reasons.append("too little has been seen to give replicas back")
        elif need < held:
            reasons.append(f"{kept} were needed within the last {patience:.0f} s, so none goes")
    else:
        wanted = kept
    return _conclude(wanted, reasons, signals, state, target)


def _asleep_and_asked(signals: Signals, held: int) -> bool:
    return held == 0 and signals.queued > 0


def _idle_sentence(signals: Signals, state: State, target: Target) -> str:
    if state.last_arrival is None:
        return "no request has come yet: the floor is enough"
    return f"no request for {signals.now - state.last_arrival:.0f} s: the floor is enough"


def _conclude(
    wanted: int, reasons: list[str], signals: Signals, state: State, target: Target
) -> Decision:
    replicas = min(max(wanted, target.min_replicas), target.max_replicas)
    if replicas < wanted:
        reasons.append(f"{wanted} are wanted, max_replicas allows {replicas}")
    elif replicas > wanted:
        reasons.append(f"min_replicas keeps {replicas}")
    held = signals.ready + signals.starting
    ordered = state.ordered_at
    if replicas > held:
        ordered = (*ordered, (signals.now, replicas))
    elif replicas < held:
        ordered = tuple((when, many) for when, many in ordered if many <= replicas)
    return Decision(
        replicas=replicas,
        reasons=tuple(reasons),
        state=replace(state, replicas=replicas, ordered_at=ordered),
    )


def _learn(signals: Signals, state: State, target: Target) -> State:
    """The state after looking at what has been done since it last looked."""
    now = signals.now
    begun = signals.arrived_total - signals.queued - signals.waiting
    looked = replace(
        state,
        at=now,
        arrived=signals.arrived_total,
        prompt_tokens=signals.prompt_tokens_total,
        generation_tokens=signals.generation_tokens_total,
        steps=signals.steps_total,
        busy_s=signals.busy_s_total,
        begun=begun,
        running=signals.running,
    )
    if state.at is None:
        return replace(looked, first=now, last_arrival=now)
    passed = now - state.at
    arrived = max(0.0, signals.arrived_total - state.arrived)
    prompt = max(0.0, signals.prompt_tokens_total - state.prompt_tokens)
    generated = max(0.0, signals.generation_tokens_total - state.generation_tokens)
    begun = max(0.0, begun - state.begun)
    # Those that run have been answered by half, in the mean.
    done = max(0.0, begun - (signals.running - state.running) / 2)
    fade = exp(-passed / MIX_S)
    mix = tuple(
        before * fade + here
        for before, here in zip(state.mix, (prompt, begun, generated, done), strict=True)
    )
    demand = state.demand
    bins = max(1, min(round(passed / BIN_S), 120))
    for _ in range(bins):
        demand = demand.add(arrived / bins)
    busy = arrived > 0 or signals.queued > 0 or signals.running > 0 or signals.waiting > 0
    return replace(
        _started(looked, signals),
        capacity=state.capacity.observe(
            busy_s=signals.busy_s_total - state.busy_s,
            steps=signals.steps_total - state.steps,
            prompt_tokens=prompt,
            generation_tokens=generated,
        ),
        demand=demand,
        mix=(mix[0], mix[1], mix[2], mix[3]),
        late=state.late * exp(-passed / BUDGET_S) + begun * _late_share(signals, target),
        served=state.served * exp(-passed / BUDGET_S) + begun,
        safety=_safety(state, signals, target, passed),
        last_arrival=now if busy else state.last_arrival,
    )


def _started(state: State, signals: Signals) -> State:
    """Learn the start-up time from orders whose replicas answer by now."""
    done = [when for when, many in state.ordered_at if signals.ready >= many]
    if not done:
        return state
    took = signals.now - max(done)
    before = state.startup_s
    return replace(
        state,
        startup_s=took if before is None else before + 0.3 * (took - before),
        ordered_at=tuple(pair for pair in state.ordered_at if signals.ready < pair[1]),
    )


def _caution(state: State, target: Target) -> float:
    """How much of the error budget is spent: 0 none, 1 all of it (or more)."""
    if state.served <= 0:
        return 0.5
    return min(1.0, state.late / state.served / (1 - target.attainment))


def _between(carefree: float, careful: float, caution: float) -> float:
    return carefree + caution * (careful - carefree)


def _late_share(signals: Signals, target: Target) -> float:
    """Share of requests that miss the time to first token, from two of its quantiles.

    Latencies are taken for log-normal, so the median and the 95th percentile say the rest.
    """
    median, high = signals.ttft_p50_s, signals.ttft_p95_s
    if not target.ttft_s or median <= 0 or high <= 0:
        return 0.0
    return 1 - NormalDist().cdf(log(target.ttft_s / median) / _spread(signals))


def _spread(signals: Signals) -> float:
    """The standard deviation of the logarithm of the time to first token."""
    if signals.ttft_p50_s <= 0 or signals.ttft_p95_s <= 0:
        return LEAST_SPREAD
    return max(log(max(signals.ttft_p95_s / signals.ttft_p50_s, 1.0)) / Z(0.95), LEAST_SPREAD)


def _safety(state: State, signals: Signals, target: Target, passed: float) -> float:
    """The factor on the margin that keeps the latency comfortably below its target.

    It does not grow while ordered replicas are on their way: their effect is not seen yet.
    """
    ratio = _pressure(signals, target)
    if ratio is None:
        return state.safety
    careful = min(CAREFUL[0], _rare(signals, target))
    wanted = _between(CAREFREE[0], careful, _caution(state, target))
    error = max(-1.0, min(log(ratio / wanted), 1.0))
    if error > 0 and (signals.starting or signals.queued):
        return state.safety
    low, high = SAFETY_RANGE
    return min(high, max(low, state.safety * exp(SAFETY_GAIN * passed * error)))


def _rare(signals: Signals, target: Target) -> float:
    """Share of the target below which the 95th percentile keeps misses as rare as is wanted.

    With log-normal latencies of spread s, p95 = T exp(-s (z(attainment) - z(0.95))).
    """
    return max(LEAST_SHARE, exp(-_spread(signals) * (Z(target.attainment) - Z(0.95))))


def _pressure(signals: Signals, target: Target) -> float | None:
    """The worst ratio of a latency to its target; None while nothing is measured."""
    ratios = [
        measured / wanted
        for measured, wanted in (
            (signals.ttft_p95_s, target.ttft_s),
            (signals.inter_token_p95_s, target.inter_token_s),
            (signals.search_p95_s, target.search_s),
        )
        if wanted and measured > 0
    ]
    return max(ratios, default=None)


def _need(signals: Signals, state: State, target: Target) -> tuple[int, list[str]]:
    """Replicas for the most that is expected when one ordered now would answer."""
    startup = state.startup_s or target.startup_s
    batch = signals.max_batch
    if signals.kv_cache_usage > KV_THRESHOLD and signals.ready:
        batch = max(1.0, signals.running / signals.ready * KV_THRESHOLD / signals.kv_cache_usage)
    prompt, generated = state.prompt_mean, state.generated_mean
    seconds = state.capacity.seconds_per_request(prompt=prompt, generated=generated, batch=batch)
    rate = 1 / seconds
    if target.inter_token_s:
        rate = state.capacity.rate_within(
            target.inter_token_s, prompt=prompt, generated=generated, batch=batch
        )
    forecast = state.demand.forecast(
        lead_s=startup + BIN_S,
        window_s=WINDOW_S,
        quantile=_between(CAREFREE[1], CAREFUL[1], _caution(state, target)),
    )
    base = forecast.level / rate
    doubt = max(0.0, forecast.rate - forecast.level) / rate
    # Square-root staffing: the batch places in use vary like the root of their number.
    z = Z(target.attainment)
    chance = z * sqrt(max(base, 0.0) * 1.5 / batch)
    margin = (doubt + chance) * state.safety
    backlog = max(0.0, signals.queued + signals.waiting - signals.ready)
    drain = backlog / rate / max(startup, 2 * (target.ttft_s or startup))
    need = ceil(base + margin + drain - 1e-9)
    reasons = [
        f"{forecast.level:.2f} requests/s expected in {startup:.0f} s ({forecast.expert}), "
        f"a replica sustains {rate:.2f} at {prompt:.0f} + {generated:.0f} tokens: {base:.2f}",
        f"{margin:.2f} more for doubt ({doubt:.2f}) and chance ({chance:.2f}), "
        f"times {state.safety:.2f} for the latency reached",
    ]
    if drain >= 0.05:
        reasons.append(f"{drain:.2f} more for {backlog:.0f} requests that wait")
    return need, reasons
