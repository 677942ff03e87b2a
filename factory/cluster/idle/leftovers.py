"""Idle things one by one: sessions, what ended jobs left, endpoints; announced, then stopped.

    judge(thing, policy, told, now)                    # pure: keep, announce or stop, and why
    check(settings, ledger, now, act=True)             # one look at all of them, and what follows

A session is a driver that joined the cluster (a notebook, a script); a leftover is a detached actor
or placement group whose job has ended. Activity is work: a task that runs, or when the last one
ended. Endpoints and engines are listed with the same words; engines fall asleep by themselves
(`sleep`), so they are not stopped here. What a stop frees is sealed in the audit log with its
hourly price.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select

from factory.cluster import local, serving
from factory.cluster.errors import ClusterError
from factory.cluster.idle import sleep
from factory.cluster.idle.shutdown import Decision, seal_stop, span
from factory.cluster.meter import MOST, asked, table
from factory.cluster.meter import jobs as ray_jobs
from factory.cluster.nodehours import Node, Use, node_of
from factory.config import Idle, Settings
from factory.ledger.schema import REQUESTS
from factory.ledger.store import Ledger

Kind = Literal["session", "actor", "placement group", "endpoint", "engine"]
Tasks = Callable[..., Sequence[Mapping[str, Any]]]
"""Rows of Ray's task table with these values of its columns."""
_OVER = ("FINISHED", "FAILED")
"""States of a Ray task that is done."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_STOP_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """Something that may be idle."""

    kind: Kind
    id: str
    name: str
    since: datetime
    """When it began, or its job ended."""
    last: datetime | None = None
    """End of its last work."""
    busy: str = ""
    """What it does right now."""
    nusd_per_hour: int = 0
    """What it holds of its nodes."""
    stop: Mapping[str, Any] | None = None
    """How it is stopped; None for what is not stopped from here."""

    @property
    def key(self) -> str:
        """Names it in announcements."""
        return f"{self.kind} {self.id}"


@dataclass(frozen=True, slots=True)
class Found:
    """A thing and what is decided about it."""

    thing: Thing
    decision: Decision
    failed: str = ""
    """Why it could not be stopped."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        thing, decided = self.thing, self.decision
        return {
            "kind": thing.kind,
            "id": thing.id,
            "name": thing.name,
            "last": thing.last and thing.last.isoformat(),
            "nusd_per_hour": thing.nusd_per_hour,
            "act": decided.act,
            "reason": decided.reason,
            "stops_at": decided.stops_at and decided.stops_at.isoformat(),
            "failed": self.failed or None,
        }


def judge(thing: Thing, policy: Idle, told: datetime | None, now: datetime) -> Decision:
    """What to do with one thing; `told` is when its stop was announced."""
    if thing.busy:
        return Decision("keep", thing.busy)
    last = max(thing.since, thing.last or thing.since)
    idle = max(timedelta(), now - last)
    if thing.stop is None:
        return Decision("keep", f"{thing.name}, used {span(idle)} ago")
    field = "session_after_s" if thing.kind == "session" else "leftover_after_s"
    after = getattr(policy, field)
    why = f"no work for {span(idle)}"
    if after is None:
        return Decision("keep", f"{why}; idle.{field} is not set")
    if idle < timedelta(seconds=after):
        return Decision("keep", f"worked {span(idle)} ago")
    pause = timedelta(seconds=policy.announce_s)
    if told is None or not last <= told <= now:
        return Decision("announce", why, now + pause)
    if now - told >= pause:
        return Decision("stop", why)
    return Decision("announce", why, told + pause)


def check(
    settings: Settings,
    ledger: Ledger,
    now: datetime,
    *,
    act: bool,
    release: Callable[[Settings, local.Cluster, Sequence[Thing]], dict[str, str]] | None = None,
) -> list[Found]:
    """Look at every thing once, and with `act` announce or stop. Raises `ClusterError`."""
    cluster = local.current(settings)
    if cluster is None:
        return []
    told = _told(settings, cluster)
    found = [
        Found(thing, judge(thing, settings.idle, told.get(thing.key), now))
        for thing in observe(settings, ledger, cluster)
    ]
    asleep = engines(settings, cluster)
    if not act:
        return [*found, *asleep]
    due = [each.thing for each in found if each.decision.act == "stop"]
    failed = (release or _release)(settings, cluster, due) if due else {}
    found = [replace(each, failed=failed.get(each.thing.key, "")) for each in found]
    kept: dict[str, datetime] = {}
    for each in found:
        key, decided = each.thing.key, each.decision
        if decided.stops_at is not None:
            kept[key] = decided.stops_at - timedelta(seconds=settings.idle.announce_s)
            if kept[key] == now:
                seal_stop(ledger, now, "announce", key, {"reason": decided.reason})
        elif decided.act == "stop" and each.failed:
            kept[key] = told[key]
        elif decided.act == "stop":
            detail = {
                "reason": decided.reason,
                "saves_nusd_per_hour": each.thing.nusd_per_hour,
                "cluster": cluster.id,
            }
            seal_stop(ledger, now, "stop", key, detail)
    _tell(settings, cluster, kept)
    return [*found, *asleep]


def engines(settings: Settings, cluster: local.Cluster) -> list[Found]:
    """The engines that are up or asleep, as the node meter saw them last."""
    found = []
    for each in sleep.known(settings, cluster):
        name = f"engine of {each.model}"
        thing = Thing(
            kind="engine",
            id=each.model,
            name=name,
            since=each.since,
            nusd_per_hour=each.nusd_per_hour,
        )
        found.append(Found(thing, each.decision))
    return found


def unused(found: Sequence[Found]) -> frozenset[str]:
    """The sessions that keep no cluster up."""
    return frozenset(
        each.thing.id
        for each in found
        if each.thing.kind == "session" and each.decision.act != "keep"
    )


def observe(settings: Settings, ledger: Ledger, cluster: local.Cluster) -> list[Thing]:
    """Everything that may be idle. Raises `ClusterError` when the cluster does not answer."""
    nodes = local.nodes(cluster)
    jobs = {str(row["job_id"]): row for row in ray_jobs(cluster) if row.get("job_id")}
    actors = table(cluster, "actors", state="ALIVE")
    groups = table(cluster, "placement_groups", state="CREATED")

    def tasks(**of: str) -> list[dict[str, Any]]:
        return table(cluster, "tasks", **of)

    return [
        *sessions(settings, nodes, jobs, actors, tasks),
        *left_behind(settings, nodes, jobs, actors, tasks, groups),
        *_endpoints(settings, ledger, cluster),
    ]


def sessions(
    settings: Settings,
    nodes: Sequence[Mapping[str, Any]],
    jobs: Mapping[str, Mapping[str, Any]],
    actors: Sequence[Mapping[str, Any]],
    tasks: Tasks,
) -> list[Thing]:
    """The drivers that joined the cluster and were not submitted as jobs."""
    found = []
    for job_id, job in jobs.items():
        driver = job.get("driver_info") or {}
        if job.get("submission_id") or job.get("status") in _ENDED or not driver.get("pid"):
            continue
        last, busy = _activity(tasks(job_id=job_id))
        held = [actor for actor in actors if actor.get("job_id") == job_id]
        found.append(
            Thing(
                kind="session",
                id=job_id,
                name=f"process {driver['pid']} on {driver.get('node_ip_address', 'a node')}",
                since=_moment(job.get("start_time")) or datetime.fromtimestamp(0, UTC),
                last=last,
                busy=busy,
                nusd_per_hour=_worth(settings, nodes, held),
                stop={
                    "driver": int(driver["pid"]),
                    "ip": str(driver.get("node_ip_address", "")),
                    "before_ms": job.get("start_time") or 0,
                },
            )
        )
    return found


def left_behind(
    settings: Settings,
    nodes: Sequence[Mapping[str, Any]],
    jobs: Mapping[str, Mapping[str, Any]],
    actors: Sequence[Mapping[str, Any]],
    tasks: Tasks,
    groups: Sequence[Mapping[str, Any]],
) -> list[Thing]:
    """What is detached, holds something, and whose job has ended; Serve's and Ray's own is not."""
    found = []
    for actor in actors:
        job = jobs.get(str(actor.get("job_id")), {})
        space = str(actor.get("ray_namespace") or "")
        if not actor.get("is_detached") or job.get("status") not in _ENDED:
            continue
        if space == "serve" or space.startswith("_") or not actor.get("name"):
            continue
        if not asked(actor):
            continue
        last, busy = _activity(tasks(actor_id=str(actor["actor_id"])))
        found.append(
            Thing(
                kind="actor",
                id=str(actor["actor_id"]),
                name=f"{actor.get('class_name')} '{actor['name']}' of job {_job_name(job)}",
                since=_moment(job.get("end_time")) or datetime.fromtimestamp(0, UTC),
                last=last,
                busy=busy,
                nusd_per_hour=_worth(settings, nodes, [actor]),
                stop={"actor": str(actor["name"]), "namespace": space},
            )
        )
    for group in groups:
        job = jobs.get(str(group.get("creator_job_id")), {})
        if not group.get("is_detached") or job.get("status") not in _ENDED:
            continue
        if str(group.get("name") or "").startswith(("SERVE_", "_")):
            continue
        inside = [a for a in actors if a.get("placement_group_id") == group["placement_group_id"]]
        own = [task for actor in inside for task in tasks(actor_id=str(actor["actor_id"]))]
        last, busy = _activity(own)
        found.append(
            Thing(
                kind="placement group",
                id=str(group["placement_group_id"]),
                name=f"'{group.get('name') or 'without a name'}' of job {_job_name(job)}",
                since=_moment(job.get("end_time")) or datetime.fromtimestamp(0, UTC),
                last=last,
                busy=busy,
                nusd_per_hour=_worth(settings, nodes, _bundles(group)),
                stop={"group": str(group["placement_group_id"])},
            )
        )
    return found


def _endpoints(settings: Settings, ledger: Ledger, cluster: local.Cluster) -> list[Thing]:
    query = select(REQUESTS.c.endpoint, func.max(REQUESTS.c.created_at)).group_by(
        REQUESTS.c.endpoint
    )
    with ledger.read() as connection:
        last = {endpoint: moment for endpoint, moment in connection.execute(query)}
    state = serving.status(settings)
    if state.url is None:
        return []
    found = []
    for name, endpoint in settings.endpoints.items():
        engines = [
            each
            for each, model in settings.models.items()
            if model.engine != "openai" and model.tier in endpoint.tiers
        ]
        if engines and all(each in state.asleep for each in engines):
            how = "its engines sleep"
        elif endpoint.floor:
            how = f"class {endpoint.class_} keeps {endpoint.floor} replica of its engines awake"
        else:
            how = f"its engines sleep after {endpoint.idle_after_s:.0f} s without a request"
        began = datetime.fromtimestamp(cluster.started, UTC)
        found.append(Thing(kind="endpoint", id=name, name=how, since=began, last=last.get(name)))
    return found


def _activity(tasks: Sequence[Mapping[str, Any]]) -> tuple[datetime | None, str]:
    """When the last of these tasks ended, and what runs or waits now."""
    if len(tasks) >= MOST:
        return None, f"in use: {MOST:,} tasks or more"
    now = [str(task.get("name")) for task in tasks if task.get("state") not in _OVER]
    ends = [_moment(task.get("end_time_ms")) for task in tasks]
    last = max((moment for moment in ends if moment is not None), default=None)
    if not now:
        return last, ""
    return last, f"in use: {now[0]}" + (f" and {len(now) - 1} more" if len(now) > 1 else "")


def _bundles(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "node_id": bundle.get("node_id"),
            "required_resources": bundle.get("unit_resources") or bundle.get("resources") or {},
        }
        for bundle in group.get("bundles") or []
    ]


def _worth(
    settings: Settings, nodes: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]]
) -> int:
    """Nano-dollars an hour of what is held of each node."""
    by_id: dict[str, Node] = {
        str(raw.get("node_id")): node_of(raw, (), settings.pools) for raw in nodes
    }
    total = 0.0
    for row in held:
        node = by_id.get(str(row.get("node_id")))
        wanted = asked(row)
        if node is None or not node.alive or node.pool not in settings.pools:
            continue
        use = Use("work", "", wanted.get("CPU", 0.0), wanted.get("GPU", 0.0))
        total += min(1.0, node.share(use)) * settings.pools[node.pool].nusd_per_hour
    return int(total)


def _job_name(job: Mapping[str, Any]) -> str:
    return str(job.get("submission_id") or job.get("job_id"))


def _moment(milliseconds: object) -> datetime | None:
    if not isinstance(milliseconds, int | float) or milliseconds <= 0:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _release(settings: Settings, cluster: local.Cluster, things: Sequence[Thing]) -> dict[str, str]:
    """Stop things in a process that joins the cluster; why each that failed did."""
    wanted = json.dumps([{"key": thing.key, **(thing.stop or {})} for thing in things])
    command = [sys.executable, "-m", "factory.cluster.idle.release", "--address", cluster.address]
    try:
        done = subprocess.run(
            command,
            input=wanted,
            env=local.environment(settings, None),
            capture_output=True,
            text=True,
            timeout=_STOP_S,
            check=False,
        )
        failed = json.loads(done.stdout.strip().splitlines()[-1])
        return {str(key): str(why) for key, why in failed.items()}
    except (OSError, ValueError, IndexError, AttributeError, subprocess.TimeoutExpired) as error:
        raise ClusterError(
            f"what is idle cannot be stopped on the cluster at {cluster.address}: {error}"
        ) from error


def _notice(settings: Settings) -> Path:
    return settings.home / "run" / "leftovers.json"


def _told(settings: Settings, cluster: local.Cluster) -> dict[str, datetime]:
    try:
        said = json.loads(_notice(settings).read_text("utf-8"))
        if said["cluster"] != cluster.id:
            return {}
        return {key: datetime.fromisoformat(at) for key, at in said["announced"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _tell(settings: Settings, cluster: local.Cluster, told: Mapping[str, datetime]) -> None:
    path = _notice(settings)
    if not told:
        path.unlink(missing_ok=True)
        return
    draft = path.with_suffix(".draft")
    said = {"cluster": cluster.id, "announced": {key: at.isoformat() for key, at in told.items()}}
    draft.write_text(json.dumps(said, indent=2), "utf-8")
    draft.replace(path)
