"""Which pools may run a job, cheapest first, and what it costs there. Pure.

pools(settings, spec)                        # ("onprem", "spot", "ondemand")
nusd_per_hour(settings.pools["spot"], spec)  # its share of the nodes it is on
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from factory.cluster.admission import Capacity
from factory.config import OwnPool, Pool, Resource, Settings

if TYPE_CHECKING:
    from factory.cluster.spec import JobSpec


def pools(settings: Settings, spec: JobSpec) -> tuple[str, ...]:
    """The pools a job may run in: own machines, which cost the same idle, then by price."""
    allowed = [
        name
        for name, pool in settings.pools.items()
        if spec.workload in pool.classes
        and spec.sensitivity in pool.residency
        and (not spec.pools or name in spec.pools)
    ]
    return tuple(
        sorted(
            allowed,
            key=lambda name: (
                not isinstance(settings.pools[name], OwnPool),
                nusd_per_hour(settings.pools[name], spec),
            ),
        )
    )


def node(pool: Pool) -> dict[Resource, float] | None:
    """What a node of the pool has; None while the configuration leaves that to Ray."""
    if pool.cpus is None:
        return None
    return {"cpus": pool.cpus, "gpus": pool.gpus or 0.0}


def configured_capacity(settings: Settings) -> dict[str, Capacity]:
    """The pools whose size the configuration gives, empty and at their largest."""
    found = {}
    for name, pool in settings.pools.items():
        if (size := node(pool)) is not None:
            found[name] = Capacity(nodes=(size,) * pool.max_nodes)
    return found


def nusd_per_hour(pool: Pool, spec: JobSpec) -> int:
    """What the job costs an hour there: its dominant share of the nodes it is on, rounded up.

    Without known node sizes each worker counts as a node.
    """
    size = node(pool)
    share = 1.0
    if size is not None:
        parts = [amount / size[name] for name, amount in spec.need.items() if size.get(name)]
        share = min(1.0, max(parts, default=1.0))
    return ceil(spec.workers * share * pool.nusd_per_hour)


def estimate_nusd(settings: Settings, spec: JobSpec, seconds: float | None) -> int | None:
    """What a job of that length costs in the pool it prefers; None when the length is unknown."""
    names = pools(settings, spec)
    if seconds is None or not names:
        return None
    return ceil(nusd_per_hour(settings.pools[names[0]], spec) * seconds / 3600)
