"""A request whose model is asleep: a tier that is awake answers in time, or the request waits.

    found = detour((1, 2), start=1, asleep={1}, ttft_ms=800, wake_s=12.0)     # pure
    await awakening.rouse(served, turn)      # gives the turn back while the engine starts

Nobody gets an error because an engine sleeps. Whoever waits holds no turn meanwhile, so that those
whose models are awake go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from factory.gateway.engine import EngineError
from factory.gateway.errors import ApiError
from factory.gateway.plan import Plan
from factory.gateway.served import Served
from factory.gateway.turns import Turn

FIRST_WAKE_S = 15.0
"""What a wake is taken to last until one was seen."""

_SMOOTHING = 0.3
"""Weight of the newest wake in the expected length."""


@dataclass(frozen=True, slots=True)
class Detour:
    """Where a request goes whose tier may be asleep."""

    tier: int
    degraded: bool = False
    """A lower tier than the one that was chosen answers."""
    reasons: tuple[str, ...] = ()


def detour(
    usable: Sequence[int],
    start: int,
    asleep: Collection[int],
    ttft_ms: float | None,
    wake_s: float,
) -> Detour:
    """The tier to begin with when `start` was chosen and the tiers in `asleep` sleep.

    Where the endpoint promises a time to first token that the wake would break, the next higher
    tier that is awake stands in, or else the next lower one; otherwise the request waits.
    """
    if start not in asleep:
        return Detour(start)
    waits = f"tier {start} is asleep and takes about {wake_s:.0f} s to wake"
    if ttft_ms is None:
        return Detour(start, reasons=(f"{waits}; the endpoint has no latency target, so it waits",))
    if wake_s * 1000 <= ttft_ms:
        return Detour(start, reasons=(f"{waits}, within the target of {ttft_ms:.0f} ms",))
    awake = [tier for tier in usable if tier not in asleep]
    above = [tier for tier in awake if tier > start]
    below = [tier for tier in awake if tier < start]
    if not above and not below:
        return Detour(start, reasons=(f"{waits}; no other tier is awake, so it waits",))
    chosen = min(above) if above else max(below)
    why = f"{waits}, more than the target of {ttft_ms:.0f} ms; tier {chosen} is awake and answers"
    return Detour(chosen, degraded=not above, reasons=(why,))


class Awakening:
    """Wakes engines, each once at a time, and remembers how long that takes."""

    def __init__(self, monotonic: Callable[[], float], max_waiting: int = 1000) -> None:
        """At most `max_waiting` requests wait for engines at a time."""
        self._monotonic = monotonic
        self._max_waiting = max_waiting
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._took: dict[str, float] = {}
        self.waiting = 0

    def around(self, planned: Plan, served: Mapping[int, Served]) -> Plan:
        """The plan with the detour that sleeping tiers ask for; what it wants is being woken."""
        asleep = {tier for tier, one in served.items() if one.asleep}
        if planned.start not in asleep:
            return planned
        wanted = served[planned.start]
        found = detour(
            planned.ladder.usable,
            planned.start,
            asleep,
            planned.call.endpoint.target.ttft_ms,
            self._took.get(wanted.model, FIRST_WAKE_S),
        )
        self.wake(wanted)
        route = replace(
            planned.route,
            tier=found.tier,
            degraded=planned.route.degraded or found.degraded,
            reasons=(*planned.route.reasons, *found.reasons),
        )
        return replace(planned, route=route, start=found.tier)

    async def rouse(self, served: Served, turn: Turn, within_s: float) -> None:
        """Return with a turn when `served` is awake, or has not come up in `within_s` seconds.

        Raises `ApiError` 429 when too many wait already, or no turn comes after the wake.
        """
        if not served.asleep:
            return
        self._admit()
        turn.end()
        await self._awaited(served, within_s)
        await turn.begin()

    async def risen(self, served: Served, within_s: float) -> None:
        """The same for a request that needs no turn. Raises `ApiError` 429."""
        if served.asleep:
            self._admit()
            await self._awaited(served, within_s)

    def _admit(self) -> None:
        if self.waiting >= self._max_waiting:
            raise ApiError(
                429,
                "engine_waking",
                f"{self._max_waiting} requests wait for engines that wake; try again in 5 s",
                headers={"Retry-After": "5"},
            )

    async def _awaited(self, served: Served, within_s: float) -> None:
        self.waiting += 1
        try:
            # Waiting ends with its own client; the wake itself is everybody's.
            await asyncio.wait({self.wake(served)}, timeout=within_s)
        finally:
            self.waiting -= 1

    def wake(self, served: Served) -> asyncio.Task[None]:
        """The wake of `served`, begun now unless it is under way."""
        running = self._waking.get(served.version)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._woken(served))
            self._waking[served.version] = running
            running.add_done_callback(lambda _: self._waking.pop(served.version, None))
        return running

    async def _woken(self, served: Served) -> None:
        assert served.sleeper is not None
        begun = self._monotonic()
        try:
            await served.sleeper.wake()
        except EngineError:
            return  # The attempt that follows meets the same failure, and says so.
        took = self._monotonic() - begun
        before = self._took.get(served.model, took)
        self._took[served.model] = before + (took - before) * _SMOOTHING
