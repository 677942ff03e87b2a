"""The durable queue: every job that was ever submitted, in the ledger's database.

    queue = Queue(ledger)
    job = queue.submit(spec, now, estimate_nusd=None)
    queue.get(job.id).state         # waiting, starting, running, stopping, succeeded, …
    queue.cancel(job.id, now)

What is here survives its submitter, its controller and the cluster. Only the controller that
holds the lease changes what a job is doing; people may ask for a cancellation or a new try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from statistics import median
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from factory.cluster.errors import ClusterError
from factory.cluster.queue import lease
from factory.cluster.queue.lease import Lease
from factory.cluster.queue.spec import JobSpec, new_id
from factory.config import Budget
from factory.ledger import alerts, budgets, spend
from factory.ledger.alerts import Alert
from factory.ledger.audit import seal
from factory.ledger.schema import JOB_CHARGES, JOBS
from factory.ledger.store import Ledger

State = Literal["waiting", "starting", "running", "stopping", "succeeded", "cancelled", "dead"]
ACTIVE: tuple[State, ...] = ("waiting", "starting", "running", "stopping")
ON_CLUSTER: tuple[State, ...] = ("starting", "running", "stopping")
FINAL: tuple[State, ...] = ("succeeded", "cancelled", "dead")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """A job of the queue and how it stands."""

    job_id: str
    order: int
    created_at: datetime
    team: str
    module: str
    spec: JobSpec
    state: State
    reason: str
    """Why it is in that state."""
    position: int | None = None
    """Place among those that wait for room, from 1."""
    attempt: int = 0
    failures: int = 0
    interruptions: int = 0
    not_before: datetime | None = None
    eligible_at: datetime | None = None
    """Since when nothing but room has kept it."""
    cluster: str | None = None
    """The cluster of the current attempt."""
    pool: str | None = None
    asked: Literal["cancel", "preempt"] | None = None
    estimate_nusd: int | None = None
    cost_nusd: int = 0
    waited_s: float = 0.0
    """Seconds in which it could have run and had to wait: the queue wait."""
    worked_s: float = 0.0
    """Seconds of work that are believed to be done, of a job with a deadline."""
    zone: str | None = None
    """Zone of the spot node that the current attempt asked for, where zones are named."""
    started_at: datetime | None = None
    """Start of the current attempt."""
    charged_until: datetime | None = None
    ended_at: datetime | None = None

    @property
    def id(self) -> str:
        """The id that submit printed."""
        return self.job_id

    @property
    def submission_id(self) -> str:
        """Ray's id of the current attempt: the same however often it is submitted."""
        return f"{self.job_id}.{self.attempt}"

    @property
    def done(self) -> bool:
        """True when the state cannot change any more by itself."""
        return self.state in FINAL

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        from factory.ledger.money import usd

        found = {item.name: getattr(self, item.name) for item in fields(self)}
        found["spec"] = self.spec.model_dump(mode="json", exclude={"env"})
        estimate = found.pop("estimate_nusd")
        found["estimate_usd"] = None if estimate is None else usd(estimate)
        found["cost_usd"] = usd(found.pop("cost_nusd"))
        found["submission_id"] = self.submission_id if self.attempt else None
        return {"id": found.pop("job_id")} | {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in found.items()
        }


class Queue:
    """All jobs. Every method raises `LedgerError` when the database does not answer.

    `on_alert` hears of a fraction of a budget that a job's charge has passed, once that is kept.
    """

    def __init__(self, ledger: Ledger, on_alert: Callable[[Alert], None] = lambda _: None) -> None:
        self._ledger = ledger
        self._on_alert = on_alert

    def submit(self, spec: JobSpec, now: datetime, estimate_nusd: int | None) -> QueuedJob:
        """Append a job; durable on return."""
        with self._ledger.write() as connection:
            spend.lock(connection)
            newest = connection.scalar(select(func.max(JOBS.c.order))) or 0
            job = QueuedJob(
                job_id=new_id(spec.module),
                order=newest + 1,
                created_at=now,
                team=spec.team,
                module=spec.module,
                spec=spec,
                state="waiting",
                reason="submitted",
                estimate_nusd=estimate_nusd,
            )
            connection.execute(JOBS.insert().values(_row(job)))
        return job

    def get(self, job_id: str) -> QueuedJob:
        """One job. Raises `ClusterError` when there is none."""
        with self._ledger.read() as connection:
            return _get(connection, job_id)

    def find(self, job_id: str) -> QueuedJob | None:
        """One job; None when there is none."""
        with self._ledger.read() as connection:
            row = connection.execute(select(JOBS).where(JOBS.c.job_id == job_id)).first()
        return None if row is None else _job(row)

    def list(
        self, states: Iterable[State] | None = None, limit: int | None = None
    ) -> list[QueuedJob]:
        """Jobs in the order of submission; with a limit the newest of them."""
        query = select(JOBS).order_by(JOBS.c.order.desc()).limit(limit)
        if states is not None:
            query = query.where(JOBS.c.state.in_(list(states)))
        with self._ledger.read() as connection:
            return [_job(row) for row in reversed(connection.execute(query).all())]

    def cancel(self, job_id: str, now: datetime) -> bool:
        """Ask for a job to be stopped, at once when it does not run; False when it is over."""
        with self._ledger.write() as connection:
            spend.lock(connection)
            job = _get(connection, job_id)
            if job.done:
                return False
            changed = replace(job, asked="cancel", reason="asked to stop")
            if job.state == "waiting":
                changed = replace(
                    changed,
                    state="cancelled",
                    reason="cancelled while waiting",
                    ended_at=now,
                    position=None,
                )
            _save(connection, changed)
            return True

    def retry(self, job_id: str, now: datetime) -> QueuedJob:
        """Put a dead or cancelled job back in its old place. Raises `ClusterError`."""
        with self._ledger.write() as connection:
            spend.lock(connection)
            job = _get(connection, job_id)
            if job.state not in ("dead", "cancelled"):
                raise ClusterError(f"job {job_id} is {job.state}; only a dead job is tried again")
            job = replace(
                job,
                state="waiting",
                reason="tried again by request",
                failures=0,
                interruptions=0,
                asked=None,
                ended_at=None,
                not_before=None,
                eligible_at=now,
            )
            _save(connection, job)
        return job

    def usual_seconds(self, module: str) -> float | None:
        """Median length of the last 20 attempts that succeeded; None when there is none."""
        query = (
            select(JOBS.c.started_at, JOBS.c.ended_at)
            .where(JOBS.c.module == module, JOBS.c.state == "succeeded")
            .order_by(JOBS.c.order.desc())
            .limit(20)
        )
        with self._ledger.read() as connection:
            lengths = [
                (row.ended_at - row.started_at).total_seconds()
                for row in connection.execute(query)
                if row.started_at is not None and row.ended_at is not None
            ]
        return median(lengths) if lengths else None

    def save(self, holder: Lease, changed: Sequence[QueuedJob]) -> None:
        """Write what a controller decided, all or nothing. Raises `Deposed`.

        A cancellation that was asked for meanwhile is kept.
        """
        if not changed:
            return
        with self._ledger.write() as connection:
            lease.require(connection, holder)
            for job in changed:
                now = _get(connection, job.job_id)
                if now.state == "cancelled":
                    continue
                if now.asked == "cancel" and not job.done:
                    job = replace(job, asked="cancel")
                _save(connection, job)

    def charge(
        self,
        holder: Lease,
        job: QueuedJob,
        until: datetime,
        rate_nusd: int,
        budget: Budget | None = None,
    ) -> QueuedJob:
        """Charge a running job up to a moment, at `rate_nusd` an hour; returns it as it is now.

        A clock that went back charges nothing, and no second is charged twice. Fractions of the
        team's `budget` that this passes are raised as alerts.
        """
        since, start = job.charged_until, job.started_at
        if since is None or start is None or job.pool is None or until <= since:
            return job
        cost = _upto(start, until, rate_nusd) - _upto(start, since, rate_nusd)
        scope = f"team:{job.team}"
        limits = {} if budget is None else budget.limits_nusd
        fresh: list[Alert] = []
        with self._ledger.write() as connection:
            lease.require(connection, holder)
            kept = _get(connection, job.job_id)
            if kept.charged_until != since:
                return kept
            count = select(func.count()).select_from(JOB_CHARGES)
            seq = connection.scalar(count.where(JOB_CHARGES.c.job_id == job.id))
            # It counts in the windows in which it began.
            bounded = {spend.place(scope, window, since): limits[window] for window in limits}
            rows = spend.opened(connection, spend.places([scope], since), list(bounded))
            connection.execute(
                JOB_CHARGES.insert().values(
                    job_id=job.id,
                    seq=seq,
                    created_at=since,
                    team=job.team,
                    pool=job.pool,
                    attempt=job.attempt,
                    since=since,
                    until=until,
                    cost_nusd=cost,
                )
            )
            spend.add(connection, {place: spend.Amounts(cost, 0) for place in rows})
            if budget is not None:
                due = [
                    alerts.of(standing, fraction, until)
                    for place, limit in bounded.items()
                    for standing in [
                        budgets.standing(place, rows[place].plus(cost, 0), limit, budget.at_limit)
                    ]
                    for fraction in alerts.passed(standing, budget.alert_at)
                ]
                fresh = alerts.keep_new(connection, due)
                seal(connection, [alerts.event(alert) for alert in fresh])
            charged = replace(job, charged_until=until, cost_nusd=kept.cost_nusd + cost)
            values = {"charged_until": until, "cost_nusd": charged.cost_nusd}
            connection.execute(JOBS.update().where(JOBS.c.job_id == job.id).values(values))
        for alert in fresh:
            self._on_alert(alert)
        return charged


def _upto(start: datetime, moment: datetime, rate_nusd: int) -> int:
    """Cost from the attempt's start, rounded down: differences of it add up exactly."""
    span = moment - start
    microseconds = (span.days * 86_400 + span.seconds) * 10**6 + span.microseconds
    return rate_nusd * microseconds // (3_600 * 10**6)


def _get(connection: Connection, job_id: str) -> QueuedJob:
    row = connection.execute(select(JOBS).where(JOBS.c.job_id == job_id)).first()
    if row is None:
        raise ClusterError(f"the queue knows no job '{job_id}'; `factory jobs list` shows them")
    return _job(row)


def _save(connection: Connection, job: QueuedJob) -> None:
    values = _row(job)
    del values["job_id"], values["order"], values["cost_nusd"]  # money is moved by `charge` alone
    connection.execute(JOBS.update().where(JOBS.c.job_id == job.job_id).values(values))


def _row(job: QueuedJob) -> dict[str, Any]:
    found = {item.name: getattr(job, item.name) for item in fields(job)}
    return found | {"spec": job.spec.model_dump(mode="json")}


def _job(row: Row[Any]) -> QueuedJob:
    values = row._asdict()
    return QueuedJob(**values | {"spec": JobSpec.model_validate(values["spec"])})
