"""Deadline-aware spot: on spot while it can be, on on-demand when it must be, never late.

    outlook = Outlook.of(watch, ["us-east-2a", "us-east-2b"])
    planned = outlook.plan(Job(work_s=86_400, overhead_s=720, time_s=108_000, price_ratio=3.0))
    now = planned.at(tick, planned.states(watch))        # the newest tick that was seen
    planned.decide(Situation(time_left_s=…, work_left_s=…, held=None, overhead_left_s=0), now)

`Outlook` is learned from what the platform has seen so far (`availability`); a plan is the
cheapest way to finish under it (`spot_plan`). Whatever the plan says, `decide` keeps one invariant:
after the tick it decides about, even when the spot node is lost in it, there is time to start an
on-demand node and finish. So a deadline that could be met when the job began is met, as long as
on-demand nodes can be had. Real jobs and the benchmark call the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from factory.cluster.spot import plan as spot_plan
from factory.cluster.spot.availability import UP, Floats, Forecast, Ints, Watch, learn
from factory.cluster.spot.plan import IDLE, SPOT, Plan

ONDEMAND: Literal["on-demand"] = "on-demand"
"""What is held when it is not a zone's spot node."""
_MAX_TICKS = 800
_MAX_STEPS = 6
"""Bounds on the plan's grid; a longer horizon or start is planned in coarser ticks."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be finished. Times in seconds."""

    work_s: float
    """Running time on a node, without starts."""
    overhead_s: float
    """What each start costs: provisioning, set-up, loading the checkpoint."""
    time_s: float
    """From now to the deadline."""
    price_ratio: float
    """Price of an on-demand hour over that of a spot hour."""

    def __post_init__(self) -> None:
        if self.work_s <= 0 or self.overhead_s < 0 or self.price_ratio <= 0:
            raise ValueError(
                "a job needs work_s above 0, overhead_s of at least 0 and price_ratio above 0"
            )

    @property
    def feasible(self) -> bool:
        """Whether on-demand alone, started now, meets the deadline."""
        return self.time_s >= self.work_s + self.overhead_s


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Where a job stands at the start of a tick."""

    time_left_s: float
    work_left_s: float
    held: str | None
    """The zone whose spot node is held, `ONDEMAND`, or None; a node just lost is not held."""
    overhead_left_s: float
    """What is still to come of the held node's start."""


@dataclass(frozen=True)
class Choice:
    """What to hold during the next tick, and why."""

    hold: str | None
    """A zone (its spot node), `ONDEMAND`, or None to wait."""
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Now:
    """The zones at this moment, as the model sees them."""

    state: int
    """State of all zones as one."""
    life: Mapping[str, float]
    """Zones that are up, with the ticks they are expected to stay so."""


@dataclass(frozen=True)
class Outlook:
    """What is expected of some zones from a moment on."""

    watch: Watch
    zones: tuple[str, ...]
    together: Forecast
    """All zones as one that is up while any is."""
    single: Mapping[str, Forecast]
    hand_over: float
    """Chance that the held zone is lost in a tick while another is up."""

    @classmethod
    def of(cls, watch: Watch, zones: Sequence[str]) -> Outlook:
        """Learn from all that `watch` has seen. Raises `ValueError` for an unknown zone."""
        if not zones:
            raise ValueError("name at least one zone")
        for zone in zones:
            if zone not in watch.up:
                raise ValueError(
                    f"zone '{zone}' has not been watched; known: {', '.join(sorted(watch.up))}"
                )
        together = learn(watch, zones)
        if len(zones) == 1:
            return cls(watch, tuple(zones), together, {zones[0]: together}, 0.0)
        single = {zone: learn(watch, [zone]) for zone in zones}
        return cls(watch, tuple(zones), together, single, _hand_over(watch, zones))

    def plan(self, job: Job) -> Planned:
        """The plan for `job`, which begins when the watch ends."""
        tick_s = self.watch.tick_s
        wanted = max(job.time_s / tick_s / _MAX_TICKS, job.overhead_s / tick_s / _MAX_STEPS, 1)
        step = ceil(wanted - 1e-9)
        coarse = self if step == 1 else Outlook.of(self.watch.every(step), self.zones)
        step_s = coarse.watch.tick_s
        ticks = max(1, int(job.time_s / step_s + 1e-9))
        hours = coarse.watch.hours(coarse.watch.ticks - 1, ticks)
        plan = spot_plan.solve(
            coarse.together,
            hours,
            coarse.hand_over,
            job.work_s / step_s,
            job.overhead_s / step_s,
            job.price_ratio,
        )
        lives = {zone: _lives(f, coarse.watch, hours) for zone, f in coarse.single.items()}
        return Planned(job, tick_s, step, plan, lives, self.watch.ticks - 1)


@dataclass(frozen=True)
class Planned:
    """A job with its plan."""

    job: Job
    tick_s: float
    """A decision holds for this long."""
    step: int
    """Ticks of the watch in one tick of the plan."""
    plan: Plan
    lives: Mapping[str, Floats]
    """By zone: expected life by plan tick and state."""
    first: int
    """The watch's tick in which the job began."""

    def expected_cost(self, state: int) -> float:
        """Expected cost over that of on-demand alone, when the job begins in `state`."""
        step_s = self.tick_s * self.step
        slack = (self.job.time_s - self.job.work_s) / step_s
        row = int(np.clip(round(slack), 0, len(self.plan.costs) - 1))
        alone = self.job.price_ratio * (self.job.work_s + self.job.overhead_s) / step_s
        return float(self.plan.costs[row, state]) / alone

    def states(self, watch: Watch) -> dict[str, Ints]:
        """State by tick of each zone, and under "" of all of them as one.

        `watch` goes on where the outlook's watch ended.
        """
        zones = tuple(self.lives)
        found = {zone: watch.series([zone], self.step).state for zone in zones}
        found[""] = watch.series(zones, self.step).state if len(zones) > 1 else found[zones[0]]
        return found

    def at(self, tick: int, states: Mapping[str, Ints]) -> Now:
        """The zones in one tick of the watch that gave `states`."""
        since = max(0, tick - self.first) // self.step
        life = {}
        for zone, lives in self.lives.items():
            state = int(states[zone][tick])
            if bool(UP[state]):
                life[zone] = float(lives[min(since, len(lives) - 1), state])
        return Now(int(states[""][tick]), life)

    def decide(self, where: Situation, now: Now) -> Choice:
        """What to hold during the next tick. Pure; keeps the invariant of this module."""
        tick, overhead = self.tick_s, self.job.overhead_s
        left, work = where.time_left_s, where.work_left_s
        held_spot = where.held if where.held in now.life else None
        on_demand = where.held == ONDEMAND
        start = where.overhead_left_s if on_demand else overhead
        if left < work + start - 1e-6:
            return Choice(ONDEMAND, ("the deadline cannot be met any more: finish soonest",))

        def survives(start_s: float) -> bool:
            """Whether all can still be finished when a spot node is lost within the tick."""
            done = max(0.0, tick - start_s)
            return work <= done or left - tick >= work - done + overhead

        step_s = tick * self.step
        kind = spot_plan.ON_DEMAND if on_demand else SPOT if held_spot else IDLE
        act = self.plan.act(
            int(left / step_s + 1e-9),
            (left - work) / step_s,
            now.state,
            kind,
            where.overhead_left_s / step_s,
        )
        best = max(now.life, key=lambda zone: now.life[zone], default=None)
        slack = f"{(left - work) / 3600:.1f} h of slack for {work / 3600:.1f} h of work"
        if act == SPOT or (act == IDLE and left - tick < work + overhead):
            zone = held_spot or best
            if zone is not None and survives(where.overhead_left_s if held_spot else overhead):
                hours = now.life[zone] * step_s / 3600
                why = "stay on" if zone == where.held else "start in"
                return Choice(
                    zone, (slack, f"{why} {zone}: up, expected for another {hours:.1f} h")
                )
            return Choice(ONDEMAND, (slack, "spot could cost the deadline now"))
        if act == IDLE:
            return Choice(None, (slack, "waiting for spot is expected to be cheaper"))
        why = "no zone is up" if best is None else f"{best} is up, but not for long enough"
        return Choice(ONDEMAND, (slack, f"{why}: on-demand is expected to be cheaper than waiting"))


def _lives(forecast: Forecast, watch: Watch, hours: Ints) -> Floats:
    """Expected lives from each tick of the plan, looking a day beyond its end."""
    day = round(86_400 / watch.tick_s)
    longer = watch.hours(watch.ticks - 1, len(hours) + day)
    return forecast.life(longer)[: len(hours)]


def _hand_over(watch: Watch, zones: Sequence[str]) -> float:
    """How often a tick on the zone that was most often up ended in a move to another one."""
    ups = np.stack([watch.up[zone] for zone in zones]).astype(bool)
    rank = ups.mean(axis=1)
    moves, held_ticks, at, now = 1.0, 60.0, -1, 0
    some = np.asarray(ups.any(axis=0))
    while now < watch.ticks:
        if not some[now]:
            now, at = now + 1, -1
            continue
        if at >= 0:
            moves += 1
        at = int(np.argmax(np.where(ups[:, now], rank, -1)))
        rest = ups[at, now:]
        run = len(rest) if rest.all() else int(np.argmin(rest))
        held_ticks += run
        now += run
    return moves / held_ticks
