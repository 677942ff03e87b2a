"""Whose turn it is when more requests come than may run at once.

    turns = Turns(max_parallel=128, max_queue_s=10.0)
    async with turns.take(team.priority, bounds(scopes, replicas)) as turn:    # ApiError 429
        ...                                                                    # ask the model

Who fits goes at once. The others stand in line by `standing`, each team with its share
(`factory.gateway.fairness`); one whose own team, key or endpoint is at its limit, or who would
crowd production's engine, does not hold up those behind it. A turn is handed over at the moment it
comes free, so leaving at any point neither loses nor doubles it.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from factory.config import Limits
from factory.gateway.errors import ApiError
from factory.gateway.fairness import CALM_S, HIGHEST_PRIORITY, RANK, Beside, Caller, Shares

_LONGEST_RETRY_S = 60.0
_SMOOTHING = 0.1
"""Weight of the newest turn in the mean length of turns."""


NOBODY = Caller()
"""A caller without a team, never shed before others and sharing with none."""


def standing(priority: int, arrived_s: float, max_queue_s: float) -> float:
    """Place in the line, lowest first: the time of arrival, less a head start for priority.

    Each point of priority is worth max_queue_s / 200 seconds, so that 100 points make half of the
    longest wait. Equal priorities go first come first served, and a request is overtaken only by
    those that come within that head start after it: a low priority waits longer, but not for ever.
    """
    return arrived_s - priority * max_queue_s / (2 * HIGHEST_PRIORITY)


def retry_after(waiting: int, parallel: int, turn_s: float) -> float:
    """Seconds until a newcomer may expect a turn, between 1 and 60.

    Little's law (1961): `waiting` requests before it leave at a rate of parallel / turn_s.
    """
    return min(max((waiting + 1) * turn_s / parallel, 1.0), _LONGEST_RETRY_S)


def bounds(scopes: Sequence[tuple[str, Limits]], replicas: int) -> list[tuple[str, int]]:
    """This process's share of each scope's `max_parallel_requests`, at least 1; unlimited ones
    are left out."""
    return [
        (scope, max(limits.max_parallel_requests // replicas, 1))
        for scope, limits in scopes
        if limits.max_parallel_requests is not None
    ]


@dataclass(slots=True, eq=False)
class Turn:
    """One request's turn: `async with` it, or `begin` and `end` it."""

    _turns: Turns
    priority: int
    """0 to 100; higher goes first."""
    scopes: Sequence[tuple[str, int]]
    """Names, each once, and how many of them may run at once."""
    caller: Caller = NOBODY
    """For whom it is."""
    here: bool = False
    """It waits or runs."""
    waited_s: float = 0.0
    """Seconds in the line."""
    began_s: float | None = None
    """When it was granted; None while it waits and after its end."""
    order: tuple[float, int] = (0.0, 0)
    """Standing and number of arrival; only of those that had to wait."""
    called: asyncio.Future[ApiError | None] | None = field(default=None, repr=False)
    """Done when it is granted (None) or refused; only of those that had to wait."""

    async def begin(self) -> None:
        """Wait for the turn. Raises `ApiError` 429 when it does not come in time."""
        await self._turns._begin(self)

    def end(self) -> None:
        """Give the turn back; doing it twice, or before the beginning, does nothing."""
        self._turns._end(self)

    async def __aenter__(self) -> Turn:
        await self._turns._begin(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._turns._end(self)


class Turns:
    """The turns of one gateway process, for use from one event loop."""

    def __init__(
        self,
        max_parallel: int,
        max_queue_s: float,
        max_waiting: int = 1000,
        monotonic: Callable[[], float] = time.perf_counter,
        beside_production: int = 1,
    ) -> None:
        """At most `max_parallel` at once; at most `max_waiting` wait, each up to `max_queue_s`.

        On an engine that production uses, at most `beside_production` of lower classes run.
        """
        self.running = 0
        self._max_parallel = max_parallel
        self._max_queue_s = max_queue_s
        self._max_waiting = max_waiting
        self._monotonic = monotonic
        self._held: dict[str, int] = {}
        self._line: list[Turn] = []
        self._arrivals = 0
        self._turn_s = 0.0
        self._shares = Shares()
        self._beside = Beside(beside_production, monotonic)

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    def waiting_by_class(self) -> dict[str, int]:
        """Requests in the line, by class of their endpoint."""
        waiting: dict[str, int] = dict.fromkeys(RANK, 0)
        for turn in self._line:
            waiting[turn.caller.class_] += 1
        return waiting

    def take(
        self, priority: int, scopes: Sequence[tuple[str, int]] = (), caller: Caller = NOBODY
    ) -> Turn:
        """A turn to wait for, under the bound of the process and of each scope in `scopes`."""
        return Turn(self, priority, scopes, caller)

    async def _begin(self, turn: Turn) -> None:
        self._beside.came(turn.caller)
        turn.here = True
        try:
            # Whoever stands in line does not fit now, so a newcomer that fits overtakes nobody.
            if self._fits(turn):
                self._grant(turn)
            else:
                await self._queue(turn)
        except BaseException:
            self._gone(turn)
            raise

    def _gone(self, turn: Turn) -> None:
        """Where production has left an engine, who waits for that is looked at once it is calm."""
        if not turn.here:
            return
        turn.here = False
        if self._beside.went(turn.caller) and self._line:
            asyncio.get_running_loop().call_later(CALM_S, self._serve)

    def _fits(self, turn: Turn) -> bool:
        if self.running >= self._max_parallel or not self._beside.admits(turn.caller):
            return False
        return all(self._held.get(scope, 0) < limit for scope, limit in turn.scopes)

    def _grant(self, turn: Turn) -> None:
        turn.began_s = self._monotonic()
        self.running += 1
        self._beside.began(turn.caller)
        for scope, _ in turn.scopes:
            self._held[scope] = self._held.get(scope, 0) + 1

    def _end(self, turn: Turn) -> None:
        if turn.began_s is None:
            return
        held_s = self._monotonic() - turn.began_s
        turn.began_s = None
        self._beside.ended(turn.caller)
        self._gone(turn)
        self._turn_s += (held_s - self._turn_s) * (_SMOOTHING if self._turn_s else 1.0)
        self.running -= 1
        for scope, _ in turn.scopes:
            left = self._held[scope] - 1
            if left:
                self._held[scope] = left
            else:
                del self._held[scope]
        if self._line:
            self._serve()

    def _serve(self) -> None:
        """Grant every turn in the line that fits now, in order."""
        place = 0
        while place < len(self._line) and self.running < self._max_parallel:
            turn = self._line[place]
            if self._fits(turn):
                del self._line[place]
                self._grant(turn)
                _call(turn, None)
            else:
                place += 1

    async def _queue(self, turn: Turn) -> None:
        arrived = self._monotonic()
        self._arrivals += 1
        if self._max_queue_s <= 0:
            raise self._refusal(turn, "none may wait (gateway.max_queue_s is 0)")
        if len(self._line) >= self._max_waiting:
            self._shed_for(turn)
        stamp = self._shares.stamp(turn.caller, arrived, self._turn_s, self._max_parallel)
        turn.order = (standing(turn.priority, stamp, self._max_queue_s), self._arrivals)
        loop = asyncio.get_running_loop()
        turn.called = loop.create_future()
        insort(self._line, turn, key=_order)
        timer = loop.call_later(self._max_queue_s, self._give_up, turn)
        try:
            problem = await turn.called
        except BaseException:
            # Cancelled in the line, or in the moment between being called and going on.
            if turn.began_s is None:
                self._leave(turn)
            self._end(turn)
            raise
        finally:
            timer.cancel()
            self._shares.left(turn.caller)
            turn.waited_s = self._monotonic() - arrived
        if problem is not None:
            raise problem

    def _shed_for(self, newcomer: Turn) -> None:
        """Make room in a full line: the last of the lowest class and priority, or the newcomer."""
        lowest = min(reversed(self._line), key=_worth, default=newcomer)
        full = f"{self._max_waiting} requests wait already"
        if _worth(newcomer) <= _worth(lowest):
            raise self._refusal(newcomer, full)
        self._leave(lowest)
        _call(
            lowest,
            self._refusal(lowest, f"{full} and those of a higher class or priority go first"),
        )

    def _give_up(self, turn: Turn) -> None:
        if turn.began_s is None and self._leave(turn):
            waited = f"no turn came in {self._max_queue_s:g} s (gateway.max_queue_s)"
            _call(turn, self._refusal(turn, waited))

    def _leave(self, turn: Turn) -> bool:
        place = bisect_left(self._line, turn.order, key=_order)
        if place == len(self._line) or self._line[place] is not turn:
            return False
        del self._line[place]
        return True

    def _refusal(self, turn: Turn, why: str) -> ApiError:
        """429, with the time in which the bound that is in the way should have room again."""
        if not self._beside.admits(turn.caller):
            return ApiError(
                429,
                "max_parallel_requests",
                f"production uses this engine, beside it few others run "
                f"(gateway.beside_production), and {why}; try again in {CALM_S:.0f} s",
                headers={"Retry-After": f"{CALM_S:.0f}"},
            )
        what, bound, ahead = "the gateway", self._max_parallel, len(self._line)
        for scope, limit in turn.scopes:
            if self.running < self._max_parallel and self._held.get(scope, 0) >= limit:
                ahead = sum(scope in dict(other.scopes) for other in self._line)
                what, bound = scope, limit
        seconds = math.ceil(retry_after(ahead, bound, self._turn_s))
        return ApiError(
            429,
            "max_parallel_requests",
            f"{what} has {bound} requests in progress, its max_parallel_requests, and {why}; "
            f"try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )


def _call(turn: Turn, problem: ApiError | None) -> None:
    if turn.called is not None and not turn.called.done():
        turn.called.set_result(problem)


def _order(turn: Turn) -> tuple[float, int]:
    return turn.order


def _worth(turn: Turn) -> tuple[int, int]:
    return turn.caller.rank, turn.priority
