"""Who waits for whom: fair shares between teams, and production's engines kept free for it.

    shares = Shares()
    stamp = shares.stamp(Caller(team="support", weight=2.0), now=12.0, turn_s=0.5, parallel=16)
    beside = Beside(1, monotonic)
    beside.admits(caller)            # False: production uses that engine, and one other is there

Both are plain bookkeeping of one gateway process; `factory.gateway.turns` asks them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from factory.config import EndpointClass

RANK: dict[EndpointClass, int] = {"batch": 0, "internal": 1, "production": 2}
"""Classes, the first to be shed in front."""

HIGHEST_PRIORITY = 100
"""Of a team."""

CALM_S = 10.0
"""Seconds after its last request in which an engine still counts as used by production."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """For whom a turn is."""

    team: str = ""
    """Who shares with whom; empty stands for nobody, and has no share to exceed."""
    weight: float = 1.0
    """Its share beside other teams'."""
    class_: EndpointClass = "production"
    """Class of the endpoint."""
    engines: frozenset[str] = frozenset()
    """The engines inside the cluster that may be asked."""

    @property
    def rank(self) -> int:
        """Higher is shed later."""
        return RANK[self.class_]


def engine_priority(caller: Caller, priority: int) -> int:
    """What vLLM is told: lower goes first, the class before the team's priority."""
    return (max(RANK.values()) - caller.rank) * (HIGHEST_PRIORITY + 1) + HIGHEST_PRIORITY - priority


class Shares:
    """Weighted fair queuing of those who wait: the virtual clock of Zhang (SIGCOMM 1990).

    Each team's requests are stamped as if they came no faster than the team's share of the
    gateway's capacity; who asks for more is stamped into the future and stands behind the others.
    A stamp is finite and newcomers' stamps grow with the time, so nobody starves.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        self._weights: dict[str, float] = {}

    def stamp(self, caller: Caller, now: float, turn_s: float, parallel: int) -> float:
        """Seconds at which the request counts as arrived; never before `now`.

        `parallel` turns of `turn_s` seconds each are the capacity that teams share by weight.
        """
        if not caller.team:
            return now
        self._waiting[caller.team] += 1
        self._weights[caller.team] = caller.weight
        stamp = max(now, self._last.get(caller.team, now))
        total = sum(self._weights[team] for team in self._waiting)
        self._last[caller.team] = stamp + turn_s / parallel * total / caller.weight
        return stamp

    def left(self, caller: Caller) -> None:
        """Note that one stamped request waits no more."""
        if not caller.team:
            return
        self._waiting[caller.team] -= 1
        if not self._waiting[caller.team]:
            # Whoever has nothing in the line begins anew: idle capacity is used without a debt.
            del self._waiting[caller.team], self._last[caller.team], self._weights[caller.team]


class Beside:
    """Bounds what lower classes run on an engine while production uses it.

    An engine that decodes a large batch is slower for everyone in it, so a flood on an internal
    endpoint would be felt by production however the requests were ordered.
    """

    def __init__(self, most: int, monotonic: Callable[[], float]) -> None:
        """At most `most` requests of lower classes run beside production, per engine."""
        self._most = most
        self._monotonic = monotonic
        self._busy: Counter[str] = Counter()
        self._last: dict[str, float] = {}
        self._lower: Counter[str] = Counter()

    def came(self, caller: Caller) -> None:
        """A request of production is here, waiting or running."""
        if caller.class_ == "production":
            self._busy.update(caller.engines)

    def went(self, caller: Caller) -> bool:
        """It is gone again; True when others may have to be looked at after `CALM_S`."""
        if caller.class_ != "production":
            return False
        self._busy.subtract(caller.engines)
        self._last |= dict.fromkeys(caller.engines, self._monotonic())
        return bool(caller.engines)

    def admits(self, caller: Caller) -> bool:
        """Whether a request may begin now."""
        if caller.class_ == "production":
            return True
        return all(self._lower[one] < self._most or not self._used(one) for one in caller.engines)

    def began(self, caller: Caller) -> None:
        """A request began."""
        if caller.class_ != "production":
            self._lower.update(caller.engines)

    def ended(self, caller: Caller) -> None:
        """A request that began has ended."""
        if caller.class_ != "production":
            self._lower.subtract(caller.engines)

    def _used(self, engine: str) -> bool:
        if self._busy[engine] > 0:
            return True
        last = self._last.get(engine)
        return last is not None and self._monotonic() - last < CALM_S
