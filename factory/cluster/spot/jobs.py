"""The spot policy at the queue: where a job with a deadline may be now, from the record of zones.

    advice = SpotJobs(settings, ledger).advise(job, now, held=None)
    advice.pools, advice.zone, advice.reasons       # None: nothing is known, or nothing to decide

The decision is `spot.Planned.decide`, the function that `python -m benchmarks.spot` measures. This
reads the record (`ledger.zones`), learns from it once an hour, and turns a job of the queue into
the plain values of that function and its choice into pools. There is a choice for a job with a
deadline and a duration that fits a spot pool and, dearer, a rented pool whose nodes stay, once the
record of that spot pool is a day long. All others go by `eligibility.pools`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from factory.cluster.placement import SpotEstimate, Work, place
from factory.cluster.queue import eligibility
from factory.cluster.queue.eligibility import RESTART_S
from factory.cluster.queue.spec import JobSpec
from factory.cluster.queue.store import QueuedJob
from factory.cluster.spot import zones
from factory.cluster.spot.availability import Watch
from factory.cluster.spot.policy import ONDEMAND, Choice, Job, Outlook, Planned, Situation
from factory.config import Settings
from factory.ledger.store import Ledger
from factory.ledger.zones import Observation, observations, prices

LEARN_EVERY = timedelta(hours=1)
AGAIN = timedelta(seconds=20)
"""A decision is kept for so long, unless what the job holds changes."""
_TICKS = 240
"""Ticks to the deadline, about; at least a minute each."""
_LEAST = 0.05
"""Part of a job that is taken to be left when it runs longer than it should."""


@dataclass(frozen=True, slots=True)
class Held:
    """The node that a job is on."""

    pool: str
    since: datetime
    """When its attempt began."""
    zones: Collection[str] = ()
    """Zones in which the pool has nodes now; empty where nodes tell none."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The two pools that a job is between."""

    spot: str
    firm: str
    """The cheapest rented pool whose nodes stay."""
    before: tuple[str, ...]
    """Pools that come before spot: own nodes."""
    stay: tuple[str, ...]
    """All pools whose nodes stay."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Where a job may be now, and why."""

    choice: Choice
    pools: tuple[str, ...]
    """Where it may start, best first; empty while it should wait for spot."""
    zone: str | None
    """Zone to ask for; None where it does not matter or zones are not named."""
    sure: bool
    """The zone of the choice was seen to be up a moment ago."""
    sides: Sides

    @property
    def reasons(self) -> str:
        """One line for people."""
        return "; ".join(self.choice.reasons)


def between(settings: Settings, spec: JobSpec, now: datetime) -> Sides | None:
    """The pools that the spot policy decides about; None where there is nothing to decide."""
    if spec.deadline is None or spec.duration_s is None or not any(spec.need.values()):
        return None
    fitting = eligibility.fit(settings, spec.model_copy(update={"deadline": None}), now)
    return sides(settings, fitting)


def sides(settings: Settings, fitting: Iterable[str]) -> Sides | None:
    """The same of pools that fit, best first."""
    names = tuple(fitting)
    markets = [settings.pools[name].market for name in names]
    if "spot" not in markets or "ondemand" not in markets:
        return None
    at, firm = markets.index("spot"), markets.index("ondemand")
    if firm < at:
        return None
    stay = tuple(name for name, market in zip(names, markets, strict=True) if market != "spot")
    return Sides(names[at], names[firm], names[:at], stay)


def tick_s(time_s: float) -> float:
    """Seconds between two decisions of the plan: whole minutes, about `_TICKS` to the deadline."""
    return 60.0 * max(1, ceil(time_s / 60 / _TICKS))


class SpotJobs:
    """The spot policy for jobs of one configuration; keeps what it has learned."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._looks: dict[str, tuple[datetime, list[Observation]]] = {}
        self._outlooks: dict[tuple[str, float], tuple[datetime, datetime, Outlook]] = {}
        self._plans: dict[str, tuple[Outlook, datetime, Planned]] = {}
        self._planned_at: datetime | None = None
        self._given: dict[str, tuple[tuple[object, ...], datetime, Advice | None]] = {}

    def advise(self, job: QueuedJob, now: datetime, held: Held | None = None) -> Advice | None:
        """Where `job` may be now; None when `eligibility.pools` says it."""
        key = (job.attempt, job.spec, None if held is None else (held.pool, *sorted(held.zones)))
        before = self._given.get(job.id)
        if before is not None and before[0] == key and timedelta() <= now - before[1] < AGAIN:
            return before[2]
        advice = self._advise(job, now, held)
        self._given[job.id] = (key, now, advice)
        return advice

    def told(self, job: QueuedJob, now: datetime) -> list[str]:
        """What the policy says of a job now, in sentences; nothing where it has no say."""
        held = None
        if job.state == "running" and job.pool is not None and job.started_at is not None:
            held = Held(job.pool, job.started_at, () if job.zone is None else (job.zone,))
        advice = None if job.done else self.advise(job, now, held)
        if advice is None:
            return []
        what = {None: "wait for spot", str(ONDEMAND): advice.sides.firm}
        return [
            f"hold: {what.get(advice.choice.hold, f'{advice.sides.spot}, {advice.choice.hold}')}",
            *advice.choice.reasons,
        ]

    def forget(self, active: Collection[str]) -> None:
        """Drop what is kept of jobs that are over."""
        for kept in (self._plans, self._given):
            for job_id in [each for each in kept if each not in active]:
                del kept[job_id]

    def estimate(self, work: Work, now: datetime) -> dict[str, SpotEstimate]:
        """What to expect of `work` on the spot pool that it fits; empty where nothing is known.

        Raises `PlacementError` like `placement.place`.
        """
        decided = place(work, self._settings.pools, now=now)
        found = sides(self._settings, [each.pool for each in decided.options if each.fits])
        if found is None or work.hours is None or work.deadline is None:
            return {}
        time_s = (work.deadline - now).total_seconds()
        spot, firm = self._settings.pools[found.spot], self._settings.pools[found.firm]
        tick = tick_s(time_s)
        known = self._outlook(found.spot, tick, now)
        if known is None:
            return {}
        first, outlook = known
        start_s = work.restart_minutes * 60 + max(spot.startup_s, firm.startup_s)
        plan = outlook.plan(
            Job(
                work_s=work.hours * 3600,
                overhead_s=max(tick, start_s),
                time_s=time_s,
                price_ratio=firm.nusd_per_hour / self._price(found.spot, now),
            )
        )
        watch = self._watch(found.spot, first, now, tick, None)
        state = plan.at(watch.ticks - 1, plan.states(watch)).state
        return {found.spot: SpotEstimate(plan.expected_cost(state))}

    def _advise(self, job: QueuedJob, now: datetime, held: Held | None) -> Advice | None:
        spec = job.spec
        found = between(self._settings, spec, now)
        if found is None or spec.deadline is None or spec.duration_s is None:
            return None
        if held is not None and held.pool not in (found.spot, *found.stay):
            return None
        time_s = (spec.deadline - now).total_seconds()
        if time_s <= 0:
            return None
        work_s = max(_LEAST * spec.duration_s, spec.duration_s - job.worked_s)
        planned = self._planned(job, found, work_s, time_s, now)
        if planned is None:
            return None
        first, plan = planned
        here = None
        if held is not None and held.pool == found.spot:
            here = {*held.zones, job.zone or found.spot}
        watch = self._watch(found.spot, first, now, plan.tick_s, here)
        where = Situation(
            time_left_s=time_s,
            work_left_s=work_s,
            held=self._held(held, found, job, watch),
            overhead_left_s=_start_left(held, now),
        )
        choice = plan.decide(where, plan.at(watch.ticks - 1, plan.states(watch)))
        if choice.hold == ONDEMAND:
            pools = found.stay
        else:
            pools = found.before if choice.hold is None else (*found.before, found.spot)
        named = choice.hold not in (None, ONDEMAND, found.spot)
        zone = choice.hold if named and self._settings.jobs.autoscaler else None
        return Advice(choice, pools, zone, self._sure(found.spot, choice.hold, now), found)

    def _planned(
        self, job: QueuedJob, found: Sides, work_s: float, time_s: float, now: datetime
    ) -> tuple[datetime, Planned] | None:
        """The plan, and where the watch that it knows begins."""
        before = self._plans.get(job.id)
        tick = tick_s(time_s)
        known = self._outlook(found.spot, tick, now)
        if known is None:
            return None
        first, outlook = known
        # A plan holds for hours: of many, one a round is renewed.
        if before is not None and (before[0] is outlook or self._planned_at == now):
            return before[1:]
        settings = self._settings
        firm = eligibility.nusd_per_hour(settings.pools[found.firm], job.spec)
        spot = eligibility.nusd_per_hour(settings.pools[found.spot], job.spec)
        live = self._price(found.spot, now) / settings.pools[found.spot].nusd_per_hour
        plan = outlook.plan(
            Job(
                work_s=work_s,
                overhead_s=max(tick, self._overhead_s(job.spec, found)),
                time_s=time_s,
                price_ratio=firm / (spot * live),
            )
        )
        self._plans[job.id] = (outlook, first, plan)
        self._planned_at = now
        return first, plan

    def _overhead_s(self, spec: JobSpec, found: Sides) -> float:
        """What a change of nodes costs at most: the end of the old one, its lost work, a start."""
        jobs, pools = self._settings.jobs, self._settings.pools
        startup = max(pools[found.spot].startup_s, pools[found.firm].startup_s)
        leave = jobs.stop_grace_s + jobs.keep_attempts_apart_s
        return RESTART_S + startup + leave + spec.checkpoint_s

    def _held(self, held: Held | None, found: Sides, job: QueuedJob, watch: Watch) -> str | None:
        if held is None:
            return None
        if held.pool != found.spot:
            return ONDEMAND
        here = job.zone or next((zone for zone in sorted(held.zones) if zone in watch.up), None)
        return here or next((zone for zone in watch.up if watch.up[zone][-1]), None)

    def _sure(self, pool: str, zone: str | None, now: datetime) -> bool:
        newest = next((each for each in reversed(self._read(pool, now)) if each.zone == zone), None)
        return newest is not None and newest.up and now - newest.at <= zones.STALE

    def _price(self, pool: str, now: datetime) -> int:
        return prices(self._ledger, now).get(pool, self._settings.pools[pool].nusd_per_hour)

    def _watch(
        self, pool: str, first: datetime, now: datetime, tick: float, here: Iterable[str] | None
    ) -> Watch:
        looks = self._read(pool, now)
        # What a job is on is there, whatever was written last.
        looks = looks + [
            Observation(at=now, pool=pool, zone=zone, up=True, source="running")
            for zone in sorted({look.zone for look in looks} & set(here or ()))
        ]
        return zones.watch(looks, first, now, tick, self._settings.pools[pool])

    def _outlook(self, pool: str, tick: float, now: datetime) -> tuple[datetime, Outlook] | None:
        kept = self._outlooks.get((pool, tick))
        if kept is not None and abs(now - kept[0]) < LEARN_EVERY:
            return kept[1], kept[2]
        looks = self._read(pool, now)
        if not looks or now - looks[0].at < zones.ENOUGH:
            return None
        first = max(looks[0].at, now - zones.LONGEST)
        watch = self._watch(pool, first, now, tick, None)
        outlook = Outlook.of(watch, tuple(watch.up))
        self._outlooks[(pool, tick)] = (now, first, outlook)
        return first, outlook

    def _read(self, pool: str, now: datetime) -> list[Observation]:
        """What was seen of the pool so far; new rows are asked for now and then."""
        at, looks = self._looks.get(pool, (None, []))
        if at is not None and timedelta() <= now - at < AGAIN / 4:
            return looks
        if looks:
            newest = looks[-1].at
            more = observations(self._ledger, pool, newest)
            looks = looks + [each for each in more if each.at > newest]
        else:
            looks = observations(self._ledger, pool, now - zones.LONGEST)
        self._looks[pool] = (now, looks)
        return looks


def worked(job: QueuedJob, since: datetime, until: datetime) -> float:
    """Seconds of work done until then: what counted before, and that time less the start."""
    if job.started_at is None:
        return job.worked_s
    ready = job.started_at + timedelta(seconds=RESTART_S)
    return job.worked_s + max(0.0, (until - max(since, ready)).total_seconds())


def _start_left(held: Held | None, now: datetime) -> float:
    if held is None:
        return 0.0
    return max(0.0, RESTART_S - (now - held.since).total_seconds())
