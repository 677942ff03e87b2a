"""A fleet of continuous-batching replicas, step by step, compiled: what the simulator moves.

    fleet = Fleet(profile, trace, most=64, ttft_s=5.0, inter_token_s=None, seed=0)
    fleet.resize(12, now=0.0)
    fleet.advance(1.0)              # every arrival, step, first token and last token until then
    fleet.signals(1.0)              # what a real deployment would report

A step takes the running requests one token further and computes pieces of waiting prompts, in
order, up to the step's token budget (vLLM's chunked prefill). A request joins the batch when its
prompt is done, which is its first token; a place and KV cache must be free before its prompt
begins. A request goes to the emptier of two replicas chosen at random (Ray Serve's router), as long
as one takes it; otherwise it waits where any replica may take it. Not modelled: prefix caching,
preemption when the KV cache overflows (a prompt waits instead), the network.

Steps between two events of a replica are taken at once, and a replica is only moved when somebody
looks at it, so 1.9 million requests take seconds. Seeds make a run repeatable.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from factory.scaling.profile import Profile
from factory.scaling.signals import Signals
from factory.scaling.trace import Trace

OFF, STARTING, READY, DRAINING = 0, 1, 2, 3
LATENCY_BINS = 240
"""Bins of the latency histograms: 12 a factor of two from 1 ms on."""
WINDOW_S = 60
"""Seconds that a latency quantile looks back."""
# Columns of a replica's floating state.
CLOCK, STEPS, CONTEXT, LEFT, READY_AT, SINCE = range(6)
# Columns of a replica's integer state.
STATUS, RUNNING, HEAD, WAITING = range(4)
# Totals of the fleet.
PROMPT, GENERATED, ITERATIONS, BUSY, LOOKED = range(5)
# Places of the cursor.
NEXT, OLDEST, LIVE = range(3)
# Knuth's constants for a 64-bit linear congruential generator (MMIX).
MULTIPLIER, INCREMENT = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
SHIFT = np.uint64(33)


class Board(NamedTuple):
    """Everything that the compiled functions read and write."""

    per_step: float
    per_sequence: float
    per_prompt: float
    per_context: float
    max_batch: int
    max_ongoing: int
    step_tokens: int
    kv_tokens: int
    arrivals: NDArray[np.float64]
    prompts: NDArray[np.int64]
    answers: NDArray[np.int64]
    first: NDArray[np.float64]
    """When each request's first token came."""
    last: NDArray[np.float64]
    """When its last token came."""
    real: NDArray[np.float64]
    """Per replica: CLOCK, STEPS, CONTEXT, LEFT, READY_AT, SINCE."""
    whole: NDArray[np.int64]
    """Per replica: STATUS, RUNNING, HEAD, WAITING."""
    ends: NDArray[np.float64]
    """Per replica and place in the batch: the step with which its answer ends."""
    who: NDArray[np.int64]
    """Likewise: the request."""
    line: NDArray[np.int64]
    """Per replica: a ring of requests whose prompts wait."""
    live: NDArray[np.int64]
    """The replicas that take requests."""
    cursor: NDArray[np.int64]
    """The next arrival, the next request that no replica has taken, how many replicas live."""
    random: NDArray[np.uint64]
    totals: NDArray[np.float64]
    """PROMPT, GENERATED, ITERATIONS, BUSY, LOOKED."""
    seen: NDArray[np.float64]
    """Histograms since the last look: time to first token, time between tokens."""


@njit(cache=True, nogil=True)
def _bin(seconds: float) -> int:
    if seconds <= 0.001:
        return 0
    return min(int(np.log2(seconds / 0.001) * 12) + 1, LATENCY_BINS - 1)


@njit(cache=True, nogil=True)
def _prefill(r: int, board: Board) -> int:
    """A step with pieces of waiting prompts, if any may begin; the prompt tokens computed."""
    real, whole, who = board.real, board.whole, board.who
    running, begun, spent = whole[r, RUNNING], 0, 0
    budget = board.step_tokens - running
    while budget > 0 and whole[r, WAITING] > 0 and running + begun < board.max_batch:
        request = board.line[r, whole[r, HEAD]]
        if real[r, LEFT] < 0:
            full = real[r, CONTEXT] + spent + board.prompts[request] > board.kv_tokens
            if full and running + begun > 0:
                break
            real[r, LEFT] = board.prompts[request]
        piece = min(budget, int(real[r, LEFT]))
        budget -= piece
        spent += piece
        real[r, LEFT] -= piece
        if real[r, LEFT] <= 0:
            real[r, LEFT] = -1
            whole[r, HEAD] = (whole[r, HEAD] + 1) % board.max_ongoing
            whole[r, WAITING] -= 1
            who[r, running + begun] = request
            begun += 1
    if spent == 0:
        return 0
    took = board.per_step + board.per_sequence * running + board.per_prompt * spent
    took += board.per_context * real[r, CONTEXT]
    real[r, CLOCK] += took
    real[r, STEPS] += 1
    real[r, CONTEXT] += running + spent
    board.totals[PROMPT] += spent
    board.totals[GENERATED] += running + begun
    board.totals[ITERATIONS] += 1
    board.totals[BUSY] += took
    for place in range(running, running + begun):
        request = who[r, place]
        board.first[request] = real[r, CLOCK]
        board.seen[0, _bin(real[r, CLOCK] - board.arrivals[request])] += 1
        board.ends[r, place] = real[r, STEPS] + board.answers[request] - 1
    whole[r, RUNNING] = running + begun
    return spent


@njit(cache=True, nogil=True)
def _decode(r: int, until: float, board: Board) -> None:
    """All steps until the next answer ends, or until `until`."""
    real, running = board.real, board.whole[r, RUNNING]
    soonest = board.ends[r, 0]
    for place in range(1, running):
        soonest = min(soonest, board.ends[r, place])
    each = board.per_step + board.per_sequence * running + board.per_context * real[r, CONTEXT]
    steps = min(soonest - real[r, STEPS], np.ceil((until - real[r, CLOCK]) / each))
    steps = max(1.0, steps)
    took = steps * each + board.per_context * running * steps * (steps - 1) / 2
    real[r, CLOCK] += took
    real[r, STEPS] += steps
    real[r, CONTEXT] += running * steps
    board.totals[GENERATED] += running * steps
    board.totals[ITERATIONS] += steps
    board.totals[BUSY] += took


@njit(cache=True, nogil=True)
def _leave(r: int, board: Board) -> None:
    """Answers that are complete leave the batch."""
    real, ends, who = board.real, board.ends, board.who
    place, running = 0, board.whole[r, RUNNING]
    while place < running:
        if ends[r, place] > real[r, STEPS]:
            place += 1
            continue
        request = who[r, place]
        tokens = board.answers[request]
        board.last[request] = real[r, CLOCK]
        if tokens > 1:
            gap = (board.last[request] - board.first[request]) / (tokens - 1)
            board.seen[1, _bin(gap)] += 1
        real[r, CONTEXT] -= board.prompts[request] + tokens - 1
        running -= 1
        ends[r, place] = ends[r, running]
        who[r, place] = who[r, running]
    board.whole[r, RUNNING] = running


@njit(cache=True, nogil=True)
def _move(r: int, until: float, board: Board) -> None:
    """Take replica `r` to `until`, or a step beyond."""
    real, whole = board.real, board.whole
    while real[r, CLOCK] < until:
        running, waiting = whole[r, RUNNING], whole[r, WAITING]
        if running == 0 and waiting == 0:
            real[r, CLOCK] = until
            return
        spent = 0
        if waiting > 0 and running < board.max_batch:
            spent = _prefill(r, board)
        if spent == 0:
            _decode(r, until, board)
        _leave(r, board)


@njit(cache=True, nogil=True)
def _offer(request: int, now: float, board: Board) -> bool:
    """Give a request to the emptier of two replicas; False when four pairs were full."""
    whole, random, count = board.whole, board.random, board.cursor[LIVE]
    for _ in range(4):
        pair = np.zeros(2, dtype=np.int64)
        for which in range(2):
            # A linear congruential generator; its upper bits are good enough to choose a replica.
            random[0] = random[0] * MULTIPLIER + INCREMENT
            pair[which] = board.live[int((random[0] >> SHIFT) % np.uint64(count))]
            _move(pair[which], now, board)
        a, b = pair[0], pair[1]
        has_a = whole[a, RUNNING] + whole[a, WAITING]
        has_b = whole[b, RUNNING] + whole[b, WAITING]
        r = b if has_b < has_a else a
        if min(has_a, has_b) < board.max_ongoing:
            board.line[r, (whole[r, HEAD] + whole[r, WAITING]) % board.max_ongoing] = request
            whole[r, WAITING] += 1
            return True
        if count == 1:
            return False
    return False


@njit(cache=True, nogil=True)
def _run(until: float, slice_s: float, board: Board) -> None:
    """Everything until `until`.

    Requests are taken in order of arrival, so those that wait are OLDEST … NEXT - 1.
    """
    arrivals, cursor = board.arrivals, board.cursor
    size = arrivals.size
    while True:
        if cursor[OLDEST] == cursor[NEXT]:
            if cursor[NEXT] >= size or arrivals[cursor[NEXT]] > until:
                return
            request = cursor[NEXT]
            cursor[NEXT] += 1
            if cursor[LIVE] > 0 and _offer(request, arrivals[request], board):
                cursor[OLDEST] += 1
            else:
                board.totals[LOOKED] = arrivals[request]
            continue
        # Somebody waits: look for a free place again a slice later.
        now = min(until, board.totals[LOOKED] + slice_s)
        board.totals[LOOKED] = now
        while cursor[NEXT] < size and arrivals[cursor[NEXT]] <= now:
            cursor[NEXT] += 1
        while cursor[LIVE] > 0 and cursor[OLDEST] < cursor[NEXT]:
            if not _offer(cursor[OLDEST], now, board):
                break
            cursor[OLDEST] += 1
        if now >= until:
            return


@njit(cache=True, nogil=True)
def _move_all(until: float, board: Board) -> None:
    for r in range(board.real.shape[0]):
        if board.whole[r, STATUS] >= READY:
            _move(r, until, board)


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
            _run(now, self.SLICE_S, self._board)
            if due > until:
                break
            self._refresh(now)
        _move_all(until, self._board)
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
