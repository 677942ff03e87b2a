"""The steps of continuous-batching replicas, compiled: what a `Fleet` moves its replicas by.

    run(until, slice_s, board)      # arrivals and the steps that they look at
    move_all(until, board)          # every replica that answers

A step takes the running requests one token further and computes pieces of waiting prompts, in
order, up to the step's token budget (vLLM's chunked prefill). A request joins the batch when its
prompt is done, which is its first token; a place and KV cache must be free before its prompt
begins. A request goes to the emptier of two replicas chosen at random (Ray Serve's router), as long
as one takes it; otherwise it waits where any replica may take it. Not modelled: prefix caching,
preemption when the KV cache overflows (a prompt waits instead), the network.

Steps between two events of a replica are taken at once, and a replica is only moved when somebody
looks at it, so 1.9 million requests take seconds.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

OFF, STARTING, READY, DRAINING = 0, 1, 2, 3
LATENCY_BINS = 240
"""Bins of the latency histograms: 12 a factor of two from 1 ms on."""
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
def run(until: float, slice_s: float, board: Board) -> None:
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
def move_all(until: float, board: Board) -> None:
    for r in range(board.real.shape[0]):
        if board.whole[r, STATUS] >= READY:
            _move(r, until, board)
