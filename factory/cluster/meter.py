"""The node meter: node-hours, what spot zones have and which engines sleep, into the ledger.

    python -m factory.cluster.meter        # started beside the head by `factory up`

It counts once a minute, and looks every ten seconds where engines may sleep. It only asks the
dashboard, so it needs no Ray in its process. It ends with the head.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from factory.cluster import local
from factory.cluster.errors import ClusterError
from factory.cluster.idle.sleep import LOOK_S, Sleepers
from factory.cluster.nodehours import Clock, Node, Use, count, node_of, resumed
from factory.cluster.spot import zones
from factory.config import Pool, Settings, load
from factory.ledger.errors import LedgerUnavailable
from factory.ledger.nodes import NodeSpan, counted, record
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.zones import observe

INTERVAL_S = 60.0
MOST = 10_000
"""Rows that Ray's state API gives at once."""
LATE = timedelta(minutes=5)
"""A node is seen to be gone at most so long after its end."""
_REPLICA = "ServeReplica:"
_SERVE = ("ServeController", "ProxyActor", "HTTPProxyActor", "JobSupervisor")


def seen(
    cluster: local.Cluster, pools: Mapping[str, Pool], models: Iterable[str] = ()
) -> list[Node]:
    """Every node that Ray knows, dead ones too, with what is held on it.

    Raises `ClusterError` when the dashboard does not answer.
    """
    raw = local.nodes(cluster)
    submitted = _submitted(cluster)
    known = tuple(models)
    uses: dict[str, list[Use]] = {}
    for actor in table(cluster, "actors", state="ALIVE"):
        _hold(uses, actor, str(actor.get("class_name")), submitted, known)
    for task in table(cluster, "tasks", state="RUNNING"):
        if task.get("type") == "NORMAL_TASK":
            _hold(uses, task, str(task.get("func_or_class_name")), submitted, known)
    return [node_of(row, uses.get(str(row.get("node_id")), ()), pools) for row in raw]


def beat(
    ledger: Ledger,
    clock: Clock,
    nodes: Iterable[Node],
    pools: Mapping[str, Pool],
    *,
    wall: datetime,
    steady: float,
) -> tuple[Clock, list[NodeSpan]]:
    """Count once and write it. The clock goes on only when the ledger has taken the spans."""
    after, spans = count(nodes, clock, wall=wall, steady=steady, pools=pools)
    record(ledger, spans)
    return after, spans


def look(ledger: Ledger, nodes: Iterable[Node], pools: Mapping[str, Pool], now: datetime) -> int:
    """Keep what the nodes tell of their spot zones; returns how much of it is news."""
    return observe(ledger, zones.seen(nodes, pools, now, now - LATE))


def watch(settings: Settings, *, interval_s: float = INTERVAL_S) -> None:
    """Count until the head is gone. What cannot be counted now is counted at the next beat."""
    ledger = open_ledger(settings.database_url)
    sleepers: Sleepers | None = None
    try:
        clock = resumed(counted(ledger))
        due = 0.0
        while (cluster := local.current(settings)) is not None:
            try:
                # Read before it looks: what is seen alive was alive until then.
                now, steady = datetime.now(UTC), time.monotonic()
                nodes = seen(cluster, settings.pools, settings.models)
                if steady >= due:
                    look(ledger, nodes, settings.pools, now)
                    clock, _ = beat(ledger, clock, nodes, settings.pools, wall=now, steady=steady)
                    due = steady + interval_s
                if sleepers is None:
                    sleepers = Sleepers(settings, ledger, cluster)
                sleepers.look(nodes, now)
            except (ClusterError, LedgerUnavailable, OSError) as error:
                print(f"meter: {error}", file=sys.stderr, flush=True)
            may_sleep = sleepers is not None and sleepers.any
            time.sleep(min(LOOK_S, interval_s) if may_sleep else interval_s)
    finally:
        if sleepers is not None:
            sleepers.close(datetime.now(UTC))
        ledger.close()


def use_of(
    name: str, row: Mapping[str, Any], jobs: Mapping[str, str], models: Iterable[str]
) -> Use | None:
    """What an actor or task holds; None when it holds nothing."""
    resources = asked(row)
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus <= 0 and gpus <= 0:
        return None
    if name.startswith(_REPLICA):
        deployment = name.rsplit(":", 1)[-1]
        for prefix in ("engine-", "embedder-"):
            if deployment.startswith(prefix):
                return Use("model", _model(deployment.removeprefix(prefix), models), cpus, gpus)
        return Use("overhead", deployment, cpus, gpus)
    if name.startswith(_SERVE):
        return Use("overhead", name, cpus, gpus)
    job = jobs.get(str(row.get("job_id")))
    return Use("job", job, cpus, gpus) if job else Use("work", name, cpus, gpus)


def asked(row: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and GPUs that an actor or task asks for.

    Inside a placement group Ray names them `CPU_group_ID` and `CPU_group_INDEX_ID`, for the same.
    """
    found: dict[str, float] = {}
    for name, amount in (row.get("required_resources") or {}).items():
        kind = str(name).split("_group_", 1)[0]
        if kind in ("CPU", "GPU") and float(amount) > 0:
            found[kind] = max(found.get(kind, 0.0), float(amount))
    return found


def _model(served: str, models: Iterable[str]) -> str:
    """The model behind a deployment, whose name may go on with an adapter's."""
    fitting = [name for name in models if served == name or served.startswith(f"{name}-")]
    return max(fitting, key=len, default=served)


def _hold(
    uses: dict[str, list[Use]],
    row: Mapping[str, Any],
    name: str,
    jobs: Mapping[str, str],
    models: Iterable[str],
) -> None:
    if (use := use_of(name, row, jobs, models)) is not None:
        uses.setdefault(str(row.get("node_id")), []).append(use)


def table(cluster: local.Cluster, what: str, **equal: str) -> list[dict[str, Any]]:
    """A table of Ray's state API, with every detail, at most `MOST` rows. Raises `ClusterError`.

    `equal`: the values that columns must have.
    """
    query: dict[str, Any] = {"detail": "1", "limit": str(MOST)}
    if equal:
        query["filter_keys"] = list(equal)
        query["filter_predicates"] = ["="] * len(equal)
        query["filter_values"] = list(equal.values())
    answer = _get(cluster, f"/api/v0/{what}", query)
    try:
        return list(answer["data"]["result"]["result"])
    except (KeyError, TypeError) as error:
        raise ClusterError(f"the cluster's dashboard answers {what} in an unknown form") from error


def jobs(cluster: local.Cluster) -> list[dict[str, Any]]:
    """All jobs and drivers as Ray's job API lists them. Raises `ClusterError`."""
    found = _get(cluster, "/api/jobs/", {})
    return found if isinstance(found, list) else []


def _submitted(cluster: local.Cluster) -> dict[str, str]:
    """Submission id by Ray's job id."""
    return {
        str(row["job_id"]): str(row["submission_id"])
        for row in jobs(cluster)
        if row.get("job_id") and row.get("submission_id")
    }


def _get(cluster: local.Cluster, path: str, query: Mapping[str, Any]) -> Any:
    try:
        answer = httpx.get(
            cluster.dashboard + path, params=query, headers=cluster.headers(), timeout=10
        )
        answer.raise_for_status()
        return answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ClusterError(
            f"the cluster's dashboard at {cluster.dashboard} does not answer ({error})"
        ) from error


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    watch(load())
