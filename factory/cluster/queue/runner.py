"""The queue's hands: start, look at and stop attempts through Ray's job API, and count nodes.

    runner = RayRunner(settings, cluster, config)
    runner.start(job, "onprem")           # the same attempt twice is one attempt
    runner.look(job.submission_id)        # Sighting, or None when the cluster does not know it

Raises `ClusterError` when the cluster does not answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from factory.cluster import local
from factory.cluster.clouds.caps import capped_pools
from factory.cluster.errors import ClusterError
from factory.cluster.jobs import Job, Jobs
from factory.cluster.local import Cluster
from factory.cluster.queue import snapshot
from factory.cluster.queue.store import QueuedJob
from factory.config import POOL_LABEL, ZONE_LABEL, OwnPool, Resource, Settings

JOB_ID = "FACTORY_JOB_ID"
"""Names the job in its process; the same in every attempt, so a run of that name is resumed."""
SIZE = "FACTORY_JOB_SIZE"
"""JSON of what the job is counted as, in quotas and charges: workers, and a worker's CPUs and GPUs.
A run takes this much and no more."""
NAMESPACE = "RAY_NAMESPACE"
"""Ray's own name for the namespace a driver joins: its team's, so that named actors stay apart."""
SELECTOR = "FACTORY_LABEL_SELECTOR"
"""JSON of Ray's `label_selector` for the job's workers."""
_Node = tuple[dict[str, str], dict[str, float], dict[str, float]]
"""Labels, what it has, what is taken."""
_RAY: dict[str, Resource] = {"CPU": "cpus", "GPU": "gpus"}


@dataclass(frozen=True, slots=True)
class Sighting:
    """An attempt as the cluster sees it."""

    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str = ""
    exit_code: int | None = None
    ended: datetime | None = None

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, slots=True)
class Seen:
    """The nodes of a pool: what each has, and what is taken in all."""

    nodes: tuple[Mapping[Resource, float], ...]
    used: Mapping[Resource, float]
    zones: frozenset[str] = frozenset()
    """Zones that its nodes are labelled with."""
    capped: bool = False
    """No more nodes of it can be had now: its cloud is out of stock, or does not answer."""


class Runner(Protocol):
    """What the controller needs of a cluster."""

    @property
    def cluster_id(self) -> str:
        """Another one after the head was started anew."""

    def start(self, job: QueuedJob, pool: str) -> None:
        """Start the current attempt; nothing happens when it was started already."""

    def look(self, submission_id: str) -> Sighting | None:
        """How an attempt stands; None when the cluster does not know it."""

    def stop(self, submission_id: str) -> None:
        """Ask an attempt to end."""

    def output(self, submission_id: str) -> str:
        """The end of what an attempt printed."""

    def nodes(self) -> dict[str, Seen]:
        """What there is, by pool."""


class RayRunner:
    """A Ray cluster through its job API and its status."""

    def __init__(self, settings: Settings, cluster: Cluster, config: Path | None = None) -> None:
        self._settings = settings
        self._cluster = cluster
        self._jobs = Jobs(settings, cluster, config)

    @property
    def cluster_id(self) -> str:
        """The mark of the head's processes."""
        return self._cluster.id

    def start(self, job: QueuedJob, pool: str) -> None:
        """Upload the job's code and submit it under its own submission id."""
        if self.look(job.submission_id) is not None:
            return
        code = snapshot.folder(self._settings.home, job.spec.code)
        env = dict(job.spec.env)
        env[JOB_ID] = job.id
        size = {"workers": job.spec.workers, "cpus": job.spec.cpus, "gpus": job.spec.gpus}
        env[SIZE] = json.dumps(size)
        env[NAMESPACE] = job.spec.team
        env["RAY_JOB_STOP_WAIT_TIME_S"] = str(self._settings.jobs.stop_grace_s)
        if pool in self._labelled():
            zone = {} if job.zone is None else {ZONE_LABEL: job.zone}
            env[SELECTOR] = json.dumps({POOL_LABEL: pool} | zone)
        try:
            self._jobs.submit(
                job.spec.module,
                job.spec.args,
                working_dir=code,
                env=env,
                submission_id=job.submission_id,
            )
        except ClusterError:
            # Somebody else may have submitted this very attempt between our look and our word.
            if self.look(job.submission_id) is None:
                raise

    def look(self, submission_id: str) -> Sighting | None:
        """How Ray's job API describes it."""
        job = self._jobs.find(submission_id)
        return None if job is None else _sighting(job)

    def stop(self, submission_id: str) -> None:
        """SIGTERM, and SIGKILL after `jobs.stop_grace_s`."""
        self._jobs.cancel(submission_id)

    def output(self, submission_id: str) -> str:
        """The last 20,000 characters."""
        return self._jobs.logs(submission_id)[-20_000:]

    def nodes(self) -> dict[str, Seen]:
        """The living nodes by pool; one without a label counts to the first pool of your own."""
        found = _by_pool(self._settings, _status(self._cluster))
        if self._cluster.autoscaling is not None:
            for name in capped_pools(Path(self._cluster.autoscaling)):
                found[name] = replace(found.get(name, Seen((), {})), capped=True)
        return found

    def _labelled(self) -> set[str]:
        return {
            labels[POOL_LABEL] for labels, _, _ in _status(self._cluster) if POOL_LABEL in labels
        } | ({*self._settings.pools} if self._settings.jobs.autoscaler else set())


def totals(settings: Settings, cluster: Cluster) -> dict[str, Seen]:
    """The living nodes by pool, as the dashboard lists them: what they have, not what is taken.

    Needs no more than HTTP, so it works in a process that has not joined the cluster.
    """
    found: list[_Node] = []
    for node in local.nodes(cluster):
        labels, total = node.get("labels"), node.get("resources_total")
        if node.get("state") == "ALIVE" and isinstance(total, dict):
            found.append((labels if isinstance(labels, dict) else {}, total, {}))
    return _by_pool(settings, found)


def _by_pool(settings: Settings, nodes: Iterable[_Node]) -> dict[str, Seen]:
    found: dict[str, tuple[list[dict[Resource, float]], dict[Resource, float], set[str]]] = {}
    home = next(
        (name for name, pool in settings.pools.items() if isinstance(pool, OwnPool)),
        next(iter(settings.pools)),
    )
    for labels, total, used in nodes:
        name = labels.get(POOL_LABEL, home)
        here, taken, zones = found.setdefault(name, ([], {}, set()))
        if ZONE_LABEL in labels:
            zones.add(labels[ZONE_LABEL])
        here.append({mine: total.get(ray, 0.0) for ray, mine in _RAY.items()})
        for ray, mine in _RAY.items():
            taken[mine] = taken.get(mine, 0.0) + used.get(ray, 0.0)
    return {
        name: Seen(tuple(here), used, frozenset(zones))
        for name, (here, used, zones) in found.items()
    }


def _status(cluster: Cluster) -> list[_Node]:
    """Labels, resources and use of every living node."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(cluster.address, timeout=10)
    except Exception as error:  # Ray raises its RPC errors as plain exceptions of many kinds
        raise ClusterError(
            f"the cluster at {cluster.address} does not say what nodes it has: "
            f"{str(error).strip().splitlines()[-1:] or type(error).__name__}"
        ) from error
    return [
        (dict(node.labels or {}), node.total_resources(), node.used_resources())
        for node in [*status.active_nodes, *status.idle_nodes]
    ]


def _sighting(job: Job) -> Sighting:
    return Sighting(job.status, job.message, job.exit_code, job.ended)
