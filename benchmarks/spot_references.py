"""What the spot policy is compared with: greedy, Uniform Progress, on-demand, and the optimum.

Time is in whole units (seconds over their greatest common divisor), so that every policy is billed
exactly. The rules are those of "Can't Be Late: Optimizing Spot Instance Savings under Deadlines"
(NSDI 2024): thrifty (wait when ahead), safety net (go to on-demand, and stay, when the time left
is less than the work left and two starts), exploitation (stay on a spot node until it is taken),
and for Uniform Progress also: rent when behind the even pace, and leave on-demand only when ahead
of the pace by two starts. With several zones they choose the one that was up most often so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.int8]
IDLE = -1


@dataclass(frozen=True)
class Setting:
    """A job on some zones from some tick on; times in units."""

    up: Bits
    """[zone, tick], from the job's start to its deadline."""
    tick: int
    work: int
    overhead: int
    ratio: float

    @property
    def ticks(self) -> int:
        """Ticks until the deadline, which is rounded down to a whole one for everybody."""
        return self.up.shape[1]

    @property
    def on_demand(self) -> int:
        """What a policy answers to hold an on-demand node: one more than the last zone."""
        return self.up.shape[0]


@dataclass(frozen=True)
class Run:
    """What became of a job; the cost is in units of a spot node."""

    cost: float
    missed: bool
    starts: int


Policy = Callable[[int, int, int, int], int]
"""(tick, work left, held, overhead left) -> what to hold: a zone, `on_demand`, or IDLE."""


def run(setting: Setting, policy: Policy) -> Run:
    """Play a policy. A node is paid for while it is held; waiting is free.

    A zone that is down at a tick's start takes its node away before the policy is asked.
    """
    work, held, coming, cost, starts = setting.work, IDLE, 0, 0.0, 0
    for now in range(setting.ticks):
        if IDLE < held < setting.on_demand and not setting.up[held, now]:
            held = IDLE
        wanted = policy(now, work, held, coming)
        if wanted != held:
            held, coming = wanted, setting.overhead
            starts += held != IDLE
        if held == IDLE:
            continue
        if held < setting.on_demand and not setting.up[held, now]:
            raise AssertionError("a policy asked for a spot node in a zone that is down")
        price = setting.ratio if held == setting.on_demand else 1.0
        starting = min(coming, setting.tick)
        coming -= starting
        done = setting.tick - starting
        if done >= work:
            return Run(cost + price * (starting + work), False, starts)
        work -= done
        cost += price * setting.tick
    return Run(cost, True, starts)


def on_demand(setting: Setting) -> Policy:
    """All of it on an on-demand node."""
    return lambda now, work, held, coming: setting.on_demand


def greedy(setting: Setting, rank: Sequence[int]) -> Policy:
    """Spot when there is any, else wait, until the safety net."""
    return _paced(setting, rank, pace=False)


def uniform_progress(setting: Setting, rank: Sequence[int]) -> Policy:
    """Like greedy, and on-demand whenever progress is behind the even pace."""
    return _paced(setting, rank, pace=True)


def _paced(setting: Setting, rank: Sequence[int], *, pace: bool) -> Policy:
    deadline = setting.ticks * setting.tick
    # Two starts, as in the paper; a tick is waited whole, so a tick and a start must fit too.
    margin = max(2 * setting.overhead, setting.overhead + setting.tick)
    caught = False

    def expected(at: int) -> float:
        return at * setting.work / deadline

    def policy(now: int, work: int, held: int, coming: int) -> int:
        nonlocal caught
        at = now * setting.tick
        done = setting.work - work
        if caught or IDLE < held < setting.on_demand:
            return held
        if deadline - at < work + margin:
            caught = True
            return setting.on_demand
        behind = done < expected(at + 2 * setting.overhead)
        if pace and held == setting.on_demand and behind:
            return held
        for zone in rank:
            if setting.up[zone, now]:
                return zone
        return setting.on_demand if pace and done < expected(at) else IDLE

    return policy


def omniscient(setting: Setting) -> float:
    """The least cost of any schedule that knows the future, by dynamic programming.

    The value of (tick, work left, held) is computed backwards for every unit of work. A start that
    is broken off before its overhead is over only costs, so a start is taken whole, as one step of
    as many ticks as it needs; this leaves nothing, each zone, and on-demand as what can be held.
    """
    tick, overhead, zones = setting.tick, setting.overhead, setting.on_demand
    work = np.arange(setting.work + 1, dtype=np.float64)
    length = max(1, -(-overhead // tick))
    gained = length * tick - overhead
    runs = np.zeros((zones, setting.ticks + 1), np.int64)
    for now in range(setting.ticks - 1, -1, -1):
        runs[:, now] = np.where(setting.up[:, now] > 0, runs[:, now + 1] + 1, 0)
    late = np.full(setting.work + 1, np.inf)
    late[0] = 0
    values: list[list[NDArray[np.float64]]] = [[late] * (zones + 2)]  # newest last

    def hold(after: NDArray[np.float64], price: float) -> NDArray[np.float64]:
        found = price * work
        found[tick:] = after[: len(work) - tick] + price * tick
        return found

    def start(after: NDArray[np.float64], price: float) -> NDArray[np.float64]:
        found = price * (overhead + work)
        found[gained:] = after[: len(work) - gained] + price * tick * length
        found[: gained + 1] = price * (overhead + work[: gained + 1])
        return found

    for now in range(setting.ticks - 1, -1, -1):
        after = values[-1]
        idle = after[0]
        if now + length <= setting.ticks:
            later = values[-length]
            idle = np.minimum(idle, start(later[zones + 1], setting.ratio))
            for zone in range(zones):
                if runs[zone, now] >= length:
                    idle = np.minimum(idle, start(later[zone + 1], 1.0))
        here = [idle]
        for zone in range(zones):
            warm = setting.up[zone, now]
            here.append(np.minimum(idle, hold(after[zone + 1], 1.0)) if warm else idle)
        here.append(np.minimum(idle, hold(after[zones + 1], setting.ratio)))
        values.append(here)
        del values[: -length - 1]
    return float(values[-1][0][setting.work])
