"""A cluster that nobody uses is announced, then stopped; what that saves is in the ledger.

    decide(activity, policy, now)                # pure: keep, announce or stop, with the reason
    check(settings, ledger, now, act=True)       # one look, and what follows from it

Activity is what was really done: requests and jobs in the ledger, jobs and sessions (notebooks,
drivers that joined) on the cluster. An announcement stands in `home/run/idle.json` and in the
audit log; any activity takes it back. A stop is sealed there with what an hour would have cost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select

from factory.cluster import local, serving
from factory.cluster.errors import ClusterError
from factory.cluster.jobs import Jobs
from factory.cluster.queue.runner import totals
from factory.cluster.queue.store import ACTIVE, Queue
from factory.config import Idle, Settings
from factory.ledger.audit import Event, seal
from factory.ledger.money import usd
from factory.ledger.schema import AUDIT, JOBS, REQUESTS
from factory.ledger.store import Ledger

Act = Literal["keep", "announce", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Who uses a cluster, and who did last."""

    started: datetime
    """When the cluster was started."""
    busy: tuple[str, ...] = ()
    """What goes on right now."""
    last: datetime | None = None
    """The newest request or end of a job."""
    announced: datetime | None = None
    """When its stop was announced, if it was."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the cluster, and why."""

    act: Act
    reason: str
    stops_at: datetime | None = None
    """When it will be stopped unless somebody uses it."""


def decide(activity: Activity, policy: Idle, now: datetime) -> Decision:
    """Keep, announce or stop. A clock that was set back keeps the cluster."""
    pause = timedelta(seconds=policy.announce_s)
    if policy.ends_at is not None and now >= policy.ends_at - pause:
        why = f"its end date {_at(policy.ends_at)}"
        if now >= policy.ends_at and _told(activity, now, pause):
            return Decision("stop", f"{why} has come")
        stop = max(policy.ends_at, (activity.announced or now) + pause)
        return Decision("announce", f"{why} is near", stop)
    if activity.busy:
        return Decision("keep", f"in use: {', '.join(activity.busy)}")
    if policy.cluster_after_s is None:
        return Decision("keep", "idle.cluster_after_s is not set")
    last = max(activity.started, activity.last or activity.started)
    since = max(timedelta(), now - last)
    if since < timedelta(seconds=policy.cluster_after_s):
        return Decision("keep", f"used {span(since)} ago")
    why = f"nobody used it for {span(since)}"
    if activity.announced is not None and activity.announced > last:
        if _told(activity, now, pause):
            return Decision("stop", why)
        return Decision("announce", why, activity.announced + pause)
    return Decision("announce", why, now + pause)


def observe(
    settings: Settings,
    ledger: Ledger,
    cluster: local.Cluster,
    unused: Collection[str] = (),
) -> Activity:
    """Look at the ledger and the cluster. Raises `ClusterError` when it does not answer.

    `unused`: sessions that do not count as use (`leftovers.unused`).
    """
    with ledger.read() as connection:
        request = connection.scalar(select(func.max(REQUESTS.c.created_at)))
        ended = connection.scalar(select(func.max(JOBS.c.ended_at)))
        queued = connection.scalar(select(func.max(JOBS.c.created_at)))
    busy = [f"job {job.id} is {job.state}" for job in Queue(ledger).list(ACTIVE)]
    for job in Jobs(settings, cluster).list():
        if job.id in unused:
            continue
        if not job.done and not any(job.id.startswith(name.split()[1]) for name in busy):
            busy.append(f"{'session' if job.session else 'job'} {job.id}")
        if job.ended is not None:
            ended = job.ended if ended is None else max(ended, job.ended)
    known = [moment for moment in (request, ended, queued) if moment is not None]
    return Activity(
        started=datetime.fromtimestamp(cluster.started, UTC),
        busy=tuple(busy),
        last=max(known, default=None),
        announced=_announced(settings, cluster),
    )


def check(
    settings: Settings,
    ledger: Ledger,
    now: datetime,
    *,
    act: bool,
    unused: Collection[str] = (),
    stop: Callable[[Settings], bool] = serving.down,
) -> Decision:
    """Look once, and with `act` carry out what is decided. Raises `ClusterError`."""
    cluster = local.current(settings)
    if cluster is None:
        return Decision("keep", "no cluster runs")
    activity = observe(settings, ledger, cluster, unused)
    decision = decide(activity, settings.idle, now)
    if not act:
        return decision
    if decision.act == "keep":
        _notice(settings).unlink(missing_ok=True)
    elif decision.act == "announce" and activity.announced is None:
        _announce(settings, cluster, decision, now)
        seal_stop(ledger, now, "announce", cluster.id, {"reason": decision.reason})
    elif decision.act == "stop":
        rate = nusd_per_hour(settings, cluster)
        seal_stop(
            ledger,
            now,
            "stop",
            cluster.id,
            {"reason": decision.reason, "saves_nusd_per_hour": rate},
        )
        stop(settings)
        _notice(settings).unlink(missing_ok=True)
    return decision


def nusd_per_hour(settings: Settings, cluster: local.Cluster) -> int:
    """What an hour of the cluster's nodes costs."""
    try:
        seen = totals(settings, cluster)
    except ClusterError:
        return 0
    return sum(
        len(nodes.nodes) * settings.pools[name].nusd_per_hour
        for name, nodes in seen.items()
        if name in settings.pools
    )


def stops(ledger: Ledger) -> list[dict[str, Any]]:
    """Every stop so far: what, when, why, and what an hour would have cost.

    Of an engine whose sleep is over also what that has saved.
    """
    query = select(AUDIT.c.created_at, AUDIT.c.action, AUDIT.c.subject, AUDIT.c.detail)
    query = query.where(AUDIT.c.action.in_(("idle.stop", "idle.wake"))).order_by(AUDIT.c.seq)
    with ledger.read() as connection:
        rows = connection.execute(query).all()
    found: list[dict[str, Any]] = []
    asleep: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.action == "idle.wake":
            asleep.pop(row.subject, {})["saved_usd"] = usd(row.detail["saved_nusd"])
            continue
        stop = {
            "stopped_at": row.created_at.isoformat(),
            "cluster": row.detail.get("cluster", row.subject),
            "what": row.subject if "cluster" in row.detail else "cluster",
            "reason": row.detail["reason"],
            "saves_usd_per_hour": usd(row.detail["saves_nusd_per_hour"]),
        }
        asleep[row.subject] = stop
        found.append(stop)
    return found


def _told(activity: Activity, now: datetime, pause: timedelta) -> bool:
    return activity.announced is not None and now - activity.announced >= pause


def seal_stop(
    ledger: Ledger, now: datetime, verb: str, subject: str, detail: dict[str, Any]
) -> None:
    """Seal an announcement or a stop of the platform's own in the audit log."""
    with ledger.write() as connection:
        event = Event(
            created_at=now, actor="system", action=f"idle.{verb}", subject=subject, detail=detail
        )
        seal(connection, [event])


def _notice(settings: Settings) -> Path:
    return settings.home / "run" / "idle.json"


def _announce(
    settings: Settings, cluster: local.Cluster, decision: Decision, now: datetime
) -> None:
    path = _notice(settings)
    draft = path.with_suffix(".draft")
    said = {"cluster": cluster.id, "announced": now.isoformat(), **asdict(decision)}
    draft.write_text(json.dumps(said, default=str, indent=2), "utf-8")
    draft.replace(path)


def _announced(settings: Settings, cluster: local.Cluster) -> datetime | None:
    try:
        said = json.loads(_notice(settings).read_text("utf-8"))
        if said["cluster"] != cluster.id:
            return None
        return datetime.fromisoformat(said["announced"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def span(length: timedelta) -> str:
    """A length of time for people."""
    seconds = int(length.total_seconds())
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
