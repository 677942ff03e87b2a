"""A fleet of simulated replicas: what the simulator orders, releases and looks at.

    fleet = Fleet(profile, trace, most=64, seed=0)
    fleet.resize(12, now=0.0)
    fleet.advance(1.0)              # every arrival, step, first token and last token until then
    fleet.signals(1.0)              # what a real deployment would report

How a replica computes, and what is not modelled, stands in `board.py`. Seeds make a run repeatable.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from factory.scaling.board import (
    BUSY,
    CLOCK,
    CONTEXT,
    DRAINING,
    GENERATED,
    ITERATIONS,
    LATENCY_BINS,
    LEFT,
    LIVE,
    NEXT,
    OFF,
    OLDEST,
    PROMPT,
    READY,
    READY_AT,
    RUNNING,
    SINCE,
    STARTING,
    STATUS,
    WAITING,
    Board,
    move_all,
    run,
)
from factory.scaling.profile import Profile
from factory.scaling.signals import Signals
from factory.scaling.trace import Trace

WINDOW_S = 60
"""Seconds that a latency quantile looks back."""


class Fleet:
    """Replicas that come, serve, drain and go, and the requests of a trace."""

    SLICE_S = 0.1
    """Seconds between two looks for a free place while requests wait."""

    def __init__(self, profile: Profile, trace: Trace, *, most: int, seed: int) -> None:
        """At most `most` replicas, those that drain included."""
        self.profile = profile
        self.trace = trace
        self.spent_s = 0.0
        """Replica-seconds of replicas that are gone, from their order to their end."""
        self._ring = np.zeros((WINDOW_S, 2, LATENCY_BINS))
        self._looks = 0
        size = len(trace)
        self._board = board = Board(
            per_step=profile.per_step_s,
            per_sequence=profile.per_sequence_s,
            per_prompt=profile.per_prompt_token_s,
            per_context=profile.per_context_token_s,
            max_batch=profile.max_batch,
            max_ongoing=profile.max_ongoing,
            step_tokens=profile.step_tokens,
            kv_tokens=profile.kv_tokens,
            arrivals=trace.arrivals,
            prompts=trace.prompt,
            answers=trace.generated,
            first=np.full(size, np.inf),
            last=np.full(size, np.inf),
            real=np.zeros((most, 6)),
            whole=np.zeros((most, 4), dtype=np.int64),
            ends=np.zeros((most, profile.max_batch)),
            who=np.zeros((most, profile.max_batch), dtype=np.int64),
            line=np.zeros((most, profile.max_ongoing), dtype=np.int64),
            live=np.zeros(most, dtype=np.int64),
            cursor=np.zeros(3, dtype=np.int64),
            random=np.array([2 * seed + 1], dtype=np.uint64),
            totals=np.zeros(5),
            seen=np.zeros((2, LATENCY_BINS)),
        )
        self._real, self._whole = board.real, board.whole
        self._real[:, LEFT] = -1

    @property
    def first(self) -> NDArray[np.float64]:
        """When each request's first token came, in seconds on the trace's clock; else infinity."""
        return self._board.first

    @property
    def last(self) -> NDArray[np.float64]:
        """When its last token came."""
        return self._board.last

    @property
    def ready(self) -> int:
        """Replicas that take requests."""
        return int(self._board.cursor[LIVE])

    @property
    def starting(self) -> int:
        """Replicas that were ordered and do not answer yet."""
        return int((self._whole[:, STATUS] == STARTING).sum())

    @property
    def queued(self) -> int:
        """Requests that no replica has taken."""
        return int(self._board.cursor[NEXT] - self._board.cursor[OLDEST])

    @property
    def ongoing(self) -> tuple[int, int]:
        """Running and waiting requests in replicas that take requests or drain."""
        alive = self._whole[:, STATUS] >= READY
        return int(self._whole[alive, RUNNING].sum()), int(self._whole[alive, WAITING].sum())

    def resize(self, replicas: int, *, now: float, at_once: bool = False) -> None:
        """Order or release replicas so that `replicas` are held. `at_once` skips their start."""
        status = self._whole[:, STATUS]
        starting = np.flatnonzero(status == STARTING)
        held = self.ready + starting.size
        if replicas > held:
            free = np.flatnonzero(status == OFF)[: replicas - held]
            self._whole[free] = 0
            self._whole[free, STATUS] = STARTING
            self._real[free, READY_AT] = now if at_once else now + self.profile.startup_s
            self._real[free, SINCE] = now
        elif replicas < held:
            # The latest orders are cancelled first, then the latest replicas drain.
            excess = held - replicas
            late = starting[np.argsort(-self._real[starting, READY_AT], kind="stable")][:excess]
            self.spent_s += float((now - self._real[late, SINCE]).sum())
            status[late] = OFF
            if excess > late.size:
                ready = np.flatnonzero(status == READY)
                order = np.argsort(-self._real[ready, READY_AT], kind="stable")
                status[ready[order][: excess - late.size]] = DRAINING
        self._refresh(now)

    def advance(self, until: float) -> None:
        """Let the time pass until `until`, replicas becoming ready as they are due."""
        while True:
            starting = self._whole[:, STATUS] == STARTING
            due = float(self._real[starting, READY_AT].min()) if starting.any() else np.inf
            now = min(until, due)
            run(now, self.SLICE_S, self._board)
            if due > until:
                break
            self._refresh(now)
        move_all(until, self._board)
        self._refresh(until)

    def _refresh(self, now: float) -> None:
        """Replicas that are due become ready, those that have drained go."""
        status = self._whole[:, STATUS]
        due = (status == STARTING) & (self._real[:, READY_AT] <= now + 1e-9)
        status[due] = READY
        self._real[due, CLOCK] = now
        gone = (
            (status == DRAINING) & (self._whole[:, RUNNING] == 0) & (self._whole[:, WAITING] == 0)
        )
        if gone.any():
            self.spent_s += float((now - self._real[gone, SINCE]).sum())
            status[gone] = OFF
        live = np.flatnonzero(status == READY)
        self._board.live[: live.size] = live
        self._board.cursor[LIVE] = live.size

    def replica_seconds(self, now: float) -> float:
        """From each replica's order to its end, or to `now`: start-up and draining cost too."""
        alive = self._whole[:, STATUS] != OFF
        return self.spent_s + float((now - self._real[alive, SINCE]).sum())

    def signals(self, now: float) -> Signals:
        """What the deployment reports at `now`; called once a second of simulated time."""
        board = self._board
        self._ring[self._looks % WINDOW_S] = board.seen
        self._looks += 1
        board.seen[:] = 0
        recent = self._ring.sum(axis=0)
        running, waiting = self.ongoing
        totals = board.totals
        alive = max(1, self.ready)
        return Signals(
            now=now,
            ready=self.ready,
            starting=self.starting,
            queued=self.queued,
            waiting=waiting,
            running=running,
            max_batch=self.profile.max_batch,
            kv_cache_usage=min(
                1.0, float(self._real[:, CONTEXT].sum()) / alive / self.profile.kv_tokens
            ),
            arrived_total=float(board.cursor[NEXT]),
            prompt_tokens_total=float(totals[PROMPT]),
            generation_tokens_total=float(totals[GENERATED]),
            steps_total=float(totals[ITERATIONS]),
            busy_s_total=float(totals[BUSY]),
            ttft_p50_s=_quantile(recent[0], 0.5),
            ttft_p95_s=_quantile(recent[0], 0.95),
            inter_token_p95_s=_quantile(recent[1], 0.95),
        )


def _quantile(counts: NDArray[np.float64], share: float) -> float:
    """The upper edge of the bin that holds the quantile; 0 without counts."""
    total = counts.sum()
    if total <= 0:
        return 0.0
    index = int(np.searchsorted(np.cumsum(counts), share * total))
    return float(0.001 * 2 ** (index / 12))
