"""The queue's controller: one at a time looks at the jobs, decides, and acts.

    python -m factory.cluster.queue.drive       # what `factory jobs submit` starts when needed
    Controller(settings, ledger, connect).tick(now)

It may be killed at any moment. What it decides is written before it is done, under a lease that
only one process holds, and what it does can be done twice: an attempt has one submission id, which
Ray takes once. What a dead controller left half done, the next one finishes.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import ceil

from factory.cluster.errors import ClusterError
from factory.cluster.queue import eligibility, lease, moving
from factory.cluster.queue.admission import Capacity, Held, Plan, admit
from factory.cluster.queue.lease import Deposed, Lease
from factory.cluster.queue.offpeak import opens_at
from factory.cluster.queue.quota import Shares
from factory.cluster.queue.retries import Ending, judge
from factory.cluster.queue.runner import Runner, Seen
from factory.cluster.queue.spec import ask, forced
from factory.cluster.queue.store import ACTIVE, ON_CLUSTER, Queue, QueuedJob
from factory.cluster.spot.jobs import SpotJobs, worked
from factory.config import RESOURCES, Resource, Settings
from factory.ledger.alerts import Alert
from factory.ledger.budgets import Standing, status
from factory.ledger.money import usd
from factory.ledger.store import Ledger

LEASE = "queue"
LEASE_S = 15.0
CHARGE_S = 10.0
"""Seconds between two charges of a running job."""
SLEW = timedelta(seconds=1)
"""So far the two clocks may drift apart while a job runs."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tick:
    """What one round did."""

    leading: bool
    active: int = 0
    started: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    trouble: str | None = None


@dataclass
class _Round:
    """What one round reads and changes."""

    now: datetime
    lease: Lease
    jobs: dict[str, QueuedJob]
    ended: list[str] = field(default_factory=list)
    seen: Mapping[str, Seen] | None = None
    """Nodes by pool, once they were asked for."""

    def nodes(self, runner: Runner) -> Mapping[str, Seen]:
        """The same, asked for once a round."""
        if self.seen is None:
            self.seen = runner.nodes()
        return self.seen


class Controller:
    """Drives the queue of one home. `connect` gives the cluster, or None when none runs."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        connect: Callable[[], Runner | None],
        holder: str | None = None,
        on_alert: Callable[[Alert], None] = lambda _: None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`steady` reads a clock that nobody sets, in seconds."""
        self._settings = settings
        self._ledger = ledger
        self._queue = Queue(ledger, on_alert)
        self._spot = SpotJobs(settings, ledger)
        self._connect = connect
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self._lease: Lease | None = None
        self._steady = steady
        self._first: dict[str, tuple[datetime, float]] = {}
        """Both clocks when a job that is on the cluster was first seen, by its id."""

    def tick(self, now: datetime) -> Tick:
        """One round. Raises `LedgerError` when the database does not answer."""
        self._lease = lease.acquire(self._ledger, LEASE, self._holder, now, LEASE_S)
        if self._lease is None:
            return Tick(leading=False)
        jobs = {job.id: job for job in self._queue.list(ACTIVE)}
        this = _Round(now, self._lease, jobs)
        self._spot.forget(jobs)
        self._first = {
            job.id: self._first.get(job.id, (now, self._steady()))
            for job in jobs.values()
            if job.state in ON_CLUSTER
        }
        try:
            return self._round(this)
        except Deposed:
            return Tick(leading=False)
        except ClusterError as error:
            return Tick(leading=True, active=len(jobs), trouble=str(error))

    def close(self, now: datetime) -> None:
        """Let another controller in at once."""
        if self._lease is not None:
            lease.release(self._ledger, self._lease, now)
            self._lease = None

    def _round(self, this: _Round) -> Tick:
        runner = self._connect()
        if runner is not None:
            for job in [job for job in this.jobs.values() if job.state in ON_CLUSTER]:
                self._look(this, job, runner)
        waiting = [job for job in this.jobs.values() if job.state == "waiting"]
        ready = self._ready(this, waiting)
        if runner is None:
            for job in ready:
                self._put(this, job, reason="no cluster runs; start one with `factory up`")
            return Tick(True, self._left(this), ended=tuple(this.ended))
        seen = this.nodes(runner) if ready else {}
        plan = self._plan(this, ready, seen)
        self._wait(this, plan)
        for preemption in plan.preemptions:
            self._halt(this, this.jobs[preemption.id], runner, "preempt", preemption.reason)
        for start in plan.starts:
            self._start(this, this.jobs[start.id], runner, start.pool, start.reason)
        return Tick(
            True,
            self._left(this),
            started=tuple(start.id for start in plan.starts),
            preempted=tuple(each.id for each in plan.preemptions),
            ended=tuple(this.ended),
        )

    def _left(self, this: _Round) -> int:
        return sum(not job.done for job in this.jobs.values())

    def _look(self, this: _Round, job: QueuedJob, runner: Runner) -> None:
        """Follow one attempt that should be on the cluster."""
        if job.cluster != runner.cluster_id:
            self._over(this, job, Ending("LOST", message="its cluster ended", asked=job.asked))
            return
        sight = runner.look(job.submission_id)
        if sight is None:
            if job.state == "starting" and job.asked != "cancel":
                assert job.pool is not None
                self._submit(this, job, runner, job.pool)
            else:
                lost = Ending("LOST", message="the cluster lost it", asked=job.asked)
                self._over(this, job, lost)
            return
        if sight.done:
            until = min(this.now, sight.ended) if sight.ended is not None else this.now
            job = self._charge(this, job, until, runner)
            failed = sight.status == "FAILED"
            ending = Ending(
                sight.status,  # type: ignore[arg-type]
                sight.exit_code,
                sight.message,
                runner.output(job.submission_id) if failed else "",
                job.asked,
            )
            self._over(this, job, ending, until)
            return
        due = job.charged_until is None or (
            (this.now - job.charged_until).total_seconds() >= CHARGE_S
        )
        if due:
            job = self._charge(this, job, this.now, runner)
        if job.state == "starting" and sight.status == "RUNNING":
            job = self._put(this, job, state="running")
        if job.asked == "cancel":
            if job.state != "stopping":
                self._halt(this, job, runner, "cancel", "cancelled by request")
        elif job.state != "stopping":
            why = self._too_dear(this, job)
            if why is None and due:
                why = self._moves(this, job, runner)
            if why is not None:
                self._halt(this, job, runner, "preempt", why)

    def _moves(self, this: _Round, job: QueuedJob, runner: Runner) -> str | None:
        if moving.may(self._settings, job):
            nodes = this.nodes(runner)
            return moving.why(self._settings, self._spot, job, nodes, this.now) or (
                moving.stranded(self._settings, job, nodes, this.now)
            )
        pool = self._settings.pools.get(job.pool or "")
        if pool is None or pool.market == "onprem":
            return None
        return moving.stranded(self._settings, job, this.nodes(runner), this.now)

    def _too_dear(self, this: _Round, job: QueuedJob) -> str | None:
        cap = job.spec.max_usd
        if cap is not None and job.cost_nusd >= int(cap * 10**9):
            return f"it has cost {usd(job.cost_nusd)} USD and may cost {cap}"
        for standing in self._standings(this, job.team):
            if standing.left_nusd < 0:
                return _full(standing)
        return None

    def _ready(self, this: _Round, waiting: list[QueuedJob]) -> list[QueuedJob]:
        """Those that wait for nothing but room; the others are told why they wait."""
        ready = []
        promised: Counter[str] = Counter()
        for job in this.jobs.values():
            if job.state in ON_CLUSTER:
                promised[job.team] += max(0, (job.estimate_nusd or 0) - job.cost_nusd)
        for job in waiting:
            spec = job.spec
            why = self._hindrance(this, job, promised[job.team])
            if why is None:
                if job.eligible_at is None:
                    job = self._put(this, job, eligible_at=this.now)
                ready.append(job)
            elif why.startswith("dead: "):
                self._put(this, job, state="dead", reason=why[6:], ended_at=this.now, position=None)
                this.ended.append(job.id)
            else:
                self._put(this, job, reason=why, position=None, **self._waited(job, this.now, None))
            assert spec.team == job.team
        return ready

    def _hindrance(self, this: _Round, job: QueuedJob, promised: int) -> str | None:
        spec, now = job.spec, this.now
        if spec.deadline is not None and now >= spec.deadline:
            return f"dead: its deadline {_at(spec.deadline)} passed while it waited"
        if spec.priority not in self._settings.jobs.classes:
            return f"dead: its class '{spec.priority}' is not in the configuration any more"
        if spec.max_usd is not None and job.cost_nusd >= int(spec.max_usd * 10**9):
            return f"dead: it has cost {usd(job.cost_nusd)} USD and may cost {spec.max_usd}"
        # A clock that was set back must not hold a job longer than its back-off.
        longest = timedelta(seconds=self._settings.jobs.retries.max_backoff_s + 60)
        if job.not_before is not None and now < job.not_before <= now + longest:
            return f"tries again at {_at(job.not_before)}: {job.reason.split(': ', 1)[-1]}"
        window = self._settings.jobs.windows.get(spec.window or "")
        if window is not None and not forced(spec, now) and (at := opens_at(window, now)) > now:
            return f"waits for window '{spec.window}', which opens at {_at(at)}"
        wanted = max(0, (job.estimate_nusd or 0) - job.cost_nusd)
        for standing in self._standings(this, job.team):
            if standing.left_nusd - promised < max(1, wanted):
                if job.estimate_nusd is not None and job.estimate_nusd > standing.limit_nusd:
                    return (
                        f"dead: its estimate of {usd(job.estimate_nusd)} USD is more than team "
                        f"'{job.team}' may ever spend in a {standing.window} "
                        f"({usd(standing.limit_nusd)} USD)"
                    )
                return _full(standing)
        advice = self._spot.advise(job, now)
        if advice is not None and not advice.pools:
            return f"waits for spot: {advice.reasons}"
        return None

    def _standings(self, this: _Round, team: str) -> list[Standing]:
        if team not in self._settings.teams or not self._settings.teams[team].budget.limits_nusd:
            return []
        found = status(self._ledger, self._settings, this.now)
        return [standing for standing in found if standing.scope == f"team:{team}"]

    def _plan(self, this: _Round, ready: list[QueuedJob], seen: Mapping[str, Seen]) -> Plan:
        settings = self._settings
        held = [
            Held(
                ask=ask(job.id, job.spec, job.order, settings, this.now),
                pool=job.pool,
                since=job.started_at.timestamp() if job.started_at else 0.0,
                leaving=job.state == "stopping",
            )
            for job in this.jobs.values()
            if job.state in ON_CLUSTER
            and job.pool is not None
            and job.spec.priority in settings.jobs.classes
        ]
        pools = capacities(settings, seen, held)
        asks = []
        for job in ready:
            advice = self._spot.advise(job, this.now)
            where = None if advice is None else advice.pools
            since = job.eligible_at
            asks.append(ask(job.id, job.spec, job.order, settings, this.now, since, where))
        if not asks:
            return Plan((), (), ())
        return admit(asks, held, pools, Shares.of(settings), patience_s=settings.jobs.patience_s)

    def _wait(self, this: _Round, plan: Plan) -> None:
        for wait in plan.waits:
            job = this.jobs[wait.id]
            if (job.reason, job.position) != (wait.reason, wait.position):
                self._put(this, job, reason=wait.reason, position=wait.position)

    def _start(self, this: _Round, job: QueuedJob, runner: Runner, pool: str, reason: str) -> None:
        """First the word, then the deed: a start that was written is made, by whom ever."""
        zone = None
        if (advice := self._spot.advise(job, this.now)) is not None:
            reason = f"{reason}; {advice.reasons}"
            zone = advice.zone if pool == advice.sides.spot else None
        job = self._put(
            this,
            job,
            state="starting",
            reason=reason,
            attempt=job.attempt + 1,
            cluster=runner.cluster_id,
            pool=pool,
            zone=zone,
            position=None,
            asked=None,
            started_at=this.now,
            charged_until=this.now,
            **self._waited(job, this.now, None),
        )
        self._submit(this, job, runner, pool)

    def _submit(self, this: _Round, job: QueuedJob, runner: Runner, pool: str) -> None:
        try:
            runner.start(job, pool)
        except ClusterError as error:
            _log.warning("job %s cannot be submitted: %s", job.id, error)
            runner.nodes()  # a cluster that answers has refused; one that does not is tried again
            self._over(this, job, Ending("FAILED", message=str(error), output=str(error)))

    def _halt(self, this: _Round, job: QueuedJob, runner: Runner, asked: str, reason: str) -> None:
        self._put(this, job, state="stopping", asked=asked, reason=reason)
        runner.stop(job.submission_id)

    def _over(
        self, this: _Round, job: QueuedJob, ending: Ending, at: datetime | None = None
    ) -> None:
        jobs = self._settings.jobs
        verdict = judge(
            ending, job.failures, job.interruptions, jobs.retries, jobs.keep_attempts_apart_s
        )
        counts = {
            "failures": job.failures + verdict.failed,
            "interruptions": job.interruptions + verdict.interrupted,
            "reason": verdict.diagnosis,
        }
        if verdict.next == "retry" and ending.asked != "preempt":
            lost = job.spec.checkpoint_s if verdict.interrupted else job.worked_s
            counts["worked_s"] = max(0.0, job.worked_s - lost)
        this.ended.append(job.id)
        if verdict.next == "retry":
            reason = job.reason if ending.asked == "preempt" else verdict.diagnosis
            counts["reason"] = f"interrupted: {reason}" if verdict.interrupted else reason
            wait = timedelta(seconds=ceil(verdict.wait_s))
            self._put(
                this,
                job,
                state="waiting",
                asked=None,
                eligible_at=None,
                not_before=this.now + wait,
                **counts,
            )
            return
        state = {"done": "succeeded", "cancelled": "cancelled", "dead": "dead"}[verdict.next]
        self._put(this, job, state=state, ended_at=at or this.now, position=None, **counts)

    def _charge(self, this: _Round, job: QueuedJob, until: datetime, runner: Runner) -> QueuedJob:
        pool = self._settings.pools.get(job.pool or "")
        if pool is None:
            return job
        rate = eligibility.nusd_per_hour(pool, job.spec)
        team = self._settings.teams.get(job.team)
        budget = None if team is None else team.budget
        since = job.charged_until
        until = self._passed(job, until)
        job = self._queue.charge(this.lease, job, until, rate, budget)
        this.jobs[job.id] = job
        if since is None or job.spec.deadline is None or until <= since:
            return job
        if pool.market != "onprem" and moving.held(job, this.nodes(runner)) is None:
            return job
        return self._put(this, job, worked_s=worked(job, since, until))

    def _passed(self, job: QueuedJob, until: datetime) -> datetime:
        """The moment up to which a job is charged: a clock that was set ahead adds no hour."""
        if job.id not in self._first:
            return until
        wall, steady = self._first[job.id]
        return min(until, wall + timedelta(seconds=self._steady() - steady) + SLEW)

    @staticmethod
    def _waited(job: QueuedJob, now: datetime, eligible_at: datetime | None) -> dict[str, object]:
        """Add up the time that only room has kept it, and begin anew."""
        since = job.eligible_at
        more = 0.0 if since is None else max(0.0, (now - since).total_seconds())
        return {"waited_s": job.waited_s + more, "eligible_at": eligible_at}

    def _put(self, this: _Round, job: QueuedJob, **changes: object) -> QueuedJob:
        changed = replace(job, **changes)  # type: ignore[arg-type]
        if changed != job:
            self._queue.save(this.lease, [changed])
        this.jobs[job.id] = changed
        return changed


def capacities(
    settings: Settings, seen: Mapping[str, Seen], held: list[Held]
) -> dict[str, Capacity]:
    """Nodes by pool, and what on them is neither free nor the queue's."""
    found = {}
    for name, pool in settings.pools.items():
        here = seen.get(name, Seen((), {}))
        nodes = list(here.nodes)
        size = eligibility.node(pool)
        if settings.jobs.autoscaler and size is not None and not here.capped:
            nodes += [size] * max(0, pool.max_nodes - len(nodes))
        others: dict[Resource, float] = {}
        for resource in RESOURCES:
            ours = sum(each.ask.total.get(resource, 0.0) for each in held if each.pool == name)
            others[resource] = max(0.0, here.used.get(resource, 0.0) - ours)
        found[name] = Capacity(tuple(nodes), others)
    return found


def _full(standing: Standing) -> str:
    return (
        f"the budget of {standing.scope} for the {standing.window} has "
        f"{usd(standing.left_nusd)} USD left of {usd(standing.limit_nusd)}; it resets at "
        f"{_at(standing.resets_at)}"
    )


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
